/* A program of a measurement for Corosync's CPG: `member TAKE GIVE EVENT_BYTES`, `latency WARM_UP SAMPLES EVENT_BYTES`.
 *
 * It sends as fast as CPG takes messages: until it is told to try again, and then it delivers what has come, since
 * that is what makes room.
 */

#include <errno.h>
#include <poll.h>

#include <corosync/cpg.h>

#include "client.h"

#define BURST 512 /* messages sent before what has come is looked at */
#define RETRY_MS 1 /* the queue may have room again although nothing was delivered here */

static cpg_handle_t handle;
static int descriptor;
static long joined, take, taken;
static double first, last;

static void deliver(cpg_handle_t h, const struct cpg_name *group, uint32_t node, uint32_t pid, void *message, size_t size)
{
    (void)h, (void)group, (void)node, (void)pid, (void)message, (void)size;
    if (++taken == 1)
        first = now();
    if (taken == take)
        last = now();
}

static void changed(cpg_handle_t h, const struct cpg_name *group, const struct cpg_address *members, size_t count,
                    const struct cpg_address *left, size_t left_count, const struct cpg_address *come, size_t come_count)
{
    (void)h, (void)group, (void)members, (void)count, (void)left, (void)left_count, (void)come, (void)come_count;
    joined = 1;
}

static void must(cs_error_t error, const char *what)
{
    if (error != CS_OK) {
        fprintf(stderr, "%s: error %d\n", what, (int)error);
        exit(1);
    }
}

/* Deliver what is there, after at most so many ms; whether there was something. */
static int dispatch(int timeout_ms)
{
    struct pollfd waited = {.fd = descriptor, .events = POLLIN};
    int found = poll(&waited, 1, timeout_ms);
    if (found < 0 && errno != EINTR)
        fail("poll", strerror(errno));
    if (found > 0)
        must(cpg_dispatch(handle, CS_DISPATCH_ALL), "cpg_dispatch");
    return found > 0;
}

/* Whether CPG took a message. */
static int send_one(const struct iovec *message)
{
    cs_error_t error = cpg_mcast_joined(handle, CPG_TYPE_AGREED, message, 1);
    if (error != CS_ERR_TRY_AGAIN)
        must(error, "cpg_mcast_joined");
    return error == CS_OK;
}

static void member(long give, const struct iovec *message)
{
    long sent = 0;
    double heard = 0;
    if (give)
        wait_go();
    while (sent < give || taken < take) {
        int full = 0;
        for (int burst = 0; burst < BURST && sent < give && !full; burst++) {
            if (send_one(message))
                sent++;
            else
                full = 1;
        }
        long before = taken;
        dispatch(sent == give ? 1000 : full ? RETRY_MS : 0);
        if (taken != before)
            heard = now();
        else if (taken && now() - heard > IDLE_S)
            break;
    }
    if (taken < take)
        last = now();
    report_rate(taken - 1, first, last, take - taken);
}

static void latency(long warm_up, long samples, const struct iovec *message)
{
    double *seconds = calloc((size_t)samples, sizeof *seconds);
    wait_go();
    for (long index = -warm_up; index < samples; index++) {
        long before = taken;
        double start = now();
        if (index == 0)
            begun_cpu = cpu();
        while (!send_one(message))
            dispatch(RETRY_MS);
        while (taken == before)
            if (!dispatch(IDLE_S * 1000))
                fail("latency", "an event has not come");
        if (index >= 0)
            seconds[index] = now() - start;
    }
    report_latency(seconds, samples);
}

int main(int count, char **arguments)
{
    cpg_callbacks_t callbacks = {.cpg_deliver_fn = deliver, .cpg_confchg_fn = changed};
    struct cpg_name group = {.length = 5, .value = "bench"};
    cs_error_t error;

    if (count != 5)
        fail("usage", "member TAKE GIVE EVENT_BYTES | latency WARM_UP SAMPLES EVENT_BYTES");
    size_t size = (size_t)number(arguments, 4);
    struct iovec message = {.iov_base = calloc(1, size), .iov_len = size};
    memset(message.iov_base, 'x', size);
    must(cpg_initialize(&handle, &callbacks), "cpg_initialize");
    must(cpg_fd_get(handle, &descriptor), "cpg_fd_get");
    while ((error = cpg_join(handle, &group)) == CS_ERR_TRY_AGAIN)
        poll(NULL, 0, RETRY_MS);
    must(error, "cpg_join");
    while (!joined)
        dispatch(1000);
    take = strcmp(arguments[1], "member") == 0 ? number(arguments, 2) : 0;
    say_ready();
    if (take)
        member(number(arguments, 3), &message);
    else
        latency(number(arguments, 2), number(arguments, 3), &message);
    must(cpg_finalize(handle), "cpg_finalize");
    return 0;
}
