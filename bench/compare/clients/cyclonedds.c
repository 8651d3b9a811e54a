/* A program of a measurement for Cyclone DDS.
 *
 *     cyclonedds subscribe EVENTS EVENT_BYTES
 *     cyclonedds publish EVENTS EVENT_BYTES
 *     cyclonedds latency WARM_UP SAMPLES EVENT_BYTES
 *
 * A sample of latency is half of the way to another host and back: what a process has written itself it would be
 * handed at once, without the network. A subscriber answers what comes under `ask`.
 */

#include <unistd.h>

#include <dds/dds.h>
#include <dds/ddsc/dds_public_impl.h>

#include "client.h"
#include "cyclonedds.h"

#define BATCH 256 /* samples taken at a time */

static dds_entity_t participant, waitset;
static dds_qos_t *qos;

static dds_entity_t must(dds_return_t value, const char *what)
{
    if (value < 0)
        fail(what, dds_strretcode(-value));
    return value;
}

static dds_entity_t topic(const char *name)
{
    return must(dds_create_topic(participant, &Event_desc, name, NULL, NULL), "dds_create_topic");
}

static dds_entity_t writer(const char *name)
{
    return must(dds_create_writer(participant, topic(name), qos, NULL), "dds_create_writer");
}

static dds_entity_t reader(const char *name)
{
    dds_entity_t made = must(dds_create_reader(participant, topic(name), qos, NULL), "dds_create_reader");
    must(dds_set_status_mask(made, DDS_DATA_AVAILABLE_STATUS), "dds_set_status_mask");
    must(dds_waitset_attach(waitset, made, made), "dds_waitset_attach");
    return made;
}

static void wait_readers(dds_entity_t of, uint32_t count)
{
    dds_publication_matched_status_t status;
    do {
        usleep(1000);
        must(dds_get_publication_matched_status(of, &status), "dds_get_publication_matched_status");
    } while (status.current_count < count);
}

static void wait_writers(dds_entity_t of, uint32_t count)
{
    dds_subscription_matched_status_t status;
    do {
        usleep(1000);
        must(dds_get_subscription_matched_status(of, &status), "dds_get_subscription_matched_status");
    } while (status.current_count < count);
}

/* Take all that is there (what is left would raise no flag again); how many. Each goes to `answers`, unless that is 0. */
static long take(dds_entity_t from, dds_entity_t answers)
{
    static void *samples[BATCH];
    static dds_sample_info_t infos[BATCH];
    long valid = 0;
    int count;

    do {
        samples[0] = NULL; /* on loan */
        count = must(dds_take(from, samples, infos, BATCH, BATCH), "dds_take");
        for (int i = 0; i < count; i++) {
            valid += infos[i].valid_data;
            if (infos[i].valid_data && answers)
                must(dds_write(answers, samples[i]), "dds_write");
        }
        if (count > 0)
            must(dds_return_loan(from, samples, count), "dds_return_loan");
    } while (count == BATCH);
    return valid;
}

/* Whether there is something to take. */
static int await(int seconds)
{
    dds_attach_t found;
    return must(dds_waitset_wait(waitset, &found, 1, DDS_SECS(seconds)), "dds_waitset_wait") > 0;
}

static void subscribe(long events)
{
    dds_entity_t measured = reader("measured"), asked = reader("ask"), answers = writer("answer");
    long taken = 0, early = 0;
    double first = 0, last = 0;

    say_ready();
    while (taken < events) {
        if (!await(IDLE_S) && taken > 0)
            break;
        long found = take(measured, 0) + take(asked, answers);
        if (found == 0)
            continue;
        last = now();
        if (taken == 0) {
            first = last;
            early = found;
        }
        taken += found;
    }
    report_rate(taken - early, first, last, events - taken);
    usleep(200000); /* whoever asked last has its answer */
}

static void publish(long events, long event_bytes)
{
    Event event = {.data = {._length = (uint32_t)event_bytes, ._maximum = (uint32_t)event_bytes,
                            ._buffer = calloc(1, (size_t)event_bytes)}};
    dds_write_set_batch(true);
    dds_entity_t measured = writer("measured");
    double begun;

    wait_readers(measured, HOSTS);
    say_ready();
    wait_go();
    begun = now();
    for (long index = 0; index < events; index++)
        must(dds_write(measured, &event), "dds_write");
    dds_write_flush(measured);
    must(dds_wait_for_acks(measured, DDS_SECS(60)), "dds_wait_for_acks");
    report_rate(events, begun, now(), 0);
}

static void latency(long warm_up, long samples, long event_bytes)
{
    double *seconds = calloc((size_t)samples, sizeof *seconds);
    Event event = {.data = {._length = (uint32_t)event_bytes, ._maximum = (uint32_t)event_bytes,
                            ._buffer = calloc(1, (size_t)event_bytes)}};
    dds_entity_t asks = writer("ask"), answers = reader("answer");
    long taken = 0;

    wait_readers(asks, HOSTS - 1);
    wait_writers(answers, HOSTS - 1);
    say_ready();
    wait_go();
    for (long index = -warm_up; index < samples; index++) {
        long before = taken;
        double start = now(), answered = 0;
        if (index == 0)
            begun_cpu = cpu();
        must(dds_write(asks, &event), "dds_write");
        while (taken - before < HOSTS - 1) { /* the first counts; the others are awaited, so that the next is alone */
            if (!await(IDLE_S))
                fail("latency", "an answer has not come");
            taken += take(answers, 0);
            if (answered == 0 && taken > before)
                answered = now();
        }
        if (index >= 0)
            seconds[index] = (answered - start) / 2;
    }
    report_latency(seconds, samples);
}

int main(int count, char **arguments)
{
    const char *role = count > 3 ? arguments[1] : "";

    participant = must(dds_create_participant(DDS_DOMAIN_DEFAULT, NULL, NULL), "dds_create_participant");
    waitset = must(dds_create_waitset(participant), "dds_create_waitset");
    qos = dds_create_qos();
    dds_qset_reliability(qos, DDS_RELIABILITY_RELIABLE, DDS_SECS(60));
    dds_qset_history(qos, DDS_HISTORY_KEEP_ALL, 0);
    if (strcmp(role, "subscribe") == 0)
        subscribe(number(arguments, 2));
    else if (strcmp(role, "publish") == 0)
        publish(number(arguments, 2), number(arguments, 3));
    else if (strcmp(role, "latency") == 0)
        latency(number(arguments, 2), number(arguments, 3), number(arguments, 4));
    else
        fail("usage", "subscribe|publish EVENTS EVENT_BYTES | latency WARM_UP SAMPLES EVENT_BYTES");
    dds_delete(participant);
    return 0;
}
