/* What the clients in C have in common: see ../peers/peer.py for what a program says and takes. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#define HOSTS 3
#define IDLE_S 5 /* a subscriber gives up when nothing has come for so long */

static double begun_cpu;

static inline double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static inline double cpu(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static inline void fail(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

/* Say that all is prepared; CPU time counts from here on. */
static inline void say_ready(void)
{
    puts("ready");
    fflush(stdout);
    begun_cpu = cpu();
}

static inline void wait_go(void)
{
    char line[16];
    if (fgets(line, sizeof line, stdin) == NULL)
        fail("waiting for `go`", "standard input has ended");
}

static inline long number(char **arguments, int index)
{
    if (arguments[index] == NULL)
        fail("arguments", "a number is missing");
    return strtol(arguments[index], NULL, 10);
}

/* `events` between two moments, and how many of those expected never came. */
static inline void report_rate(long events, double first, double last, long lost)
{
    printf("{\"events\": %ld, \"first\": %.9f, \"last\": %.9f, \"lost\": %ld, \"cpu_s\": %.6f}\n", events, first, last,
           lost, cpu() - begun_cpu);
    fflush(stdout);
}

static int ascending(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

/* `seconds`: one per sample; sorted here. */
static inline void report_latency(double *seconds, long samples)
{
    qsort(seconds, (size_t)samples, sizeof *seconds, ascending);
    printf("{\"samples\": %ld, \"min_us\": %.3f, \"p50_us\": %.3f, \"p99_us\": %.3f, \"max_us\": %.3f, \"cpu_s\": %.6f}\n",
           samples, seconds[0] * 1e6, seconds[samples / 2] * 1e6, seconds[samples * 99 / 100] * 1e6,
           seconds[samples - 1] * 1e6, cpu() - begun_cpu);
    fflush(stdout);
}
