/* A program of a measurement for NATS.
 *
 *     nats URL subscribe EVENTS EVENT_BYTES
 *     nats URL publish EVENTS EVENT_BYTES
 *     nats URL latency WARM_UP SAMPLES EVENT_BYTES
 */

#include <pthread.h>
#include <unistd.h>

#include <nats/nats.h>

#include "client.h"

#define SUBJECT "bench"
#define LOOK_MS 20 /* whether all has come; the moment itself is noted where it comes */

static natsConnection *connection;
static long take;
static volatile long taken;
static volatile double first, last;

static void must(natsStatus status, const char *what)
{
    if (status != NATS_OK)
        fail(what, natsStatus_GetText(status));
}

static void deliver(natsConnection *from, natsSubscription *subscription, natsMsg *message, void *closure)
{
    (void)from, (void)subscription, (void)closure;
    natsMsg_Destroy(message);
    if (++taken == 1)
        first = now();
    if (taken == take)
        last = now();
}

static void subscribe(long events)
{
    natsSubscription *subscription;
    long before = 0;
    double heard = 0;

    take = events;
    must(natsConnection_Subscribe(&subscription, connection, SUBJECT, deliver, NULL), "natsConnection_Subscribe");
    must(natsSubscription_SetPendingLimits(subscription, -1, -1), "natsSubscription_SetPendingLimits");
    must(natsConnection_Flush(connection), "natsConnection_Flush");
    say_ready();
    while (taken < take) {
        usleep(LOOK_MS * 1000);
        if (taken != before)
            heard = now();
        else if (taken && now() - heard > IDLE_S)
            break;
        before = taken;
    }
    report_rate(taken - 1, first, taken < take ? heard : last, take - taken);
}

static void publish(long events, long event_bytes)
{
    char *event = calloc(1, (size_t)event_bytes);
    double begun;

    say_ready();
    wait_go();
    begun = now();
    for (long index = 0; index < events; index++)
        must(natsConnection_Publish(connection, SUBJECT, event, (int)event_bytes), "natsConnection_Publish");
    must(natsConnection_FlushTimeout(connection, 60000), "natsConnection_Flush");
    report_rate(events, begun, now(), 0);
}

static void latency(long warm_up, long samples, long event_bytes)
{
    double *seconds = calloc((size_t)samples, sizeof *seconds);
    char *event = calloc(1, (size_t)event_bytes);
    natsSubscription *subscription;

    must(natsConnection_SubscribeSync(&subscription, connection, SUBJECT), "natsConnection_SubscribeSync");
    must(natsConnection_Flush(connection), "natsConnection_Flush");
    say_ready();
    wait_go();
    for (long index = -warm_up; index < samples; index++) {
        natsMsg *message;
        double start = now();
        if (index == 0)
            begun_cpu = cpu();
        must(natsConnection_Publish(connection, SUBJECT, event, (int)event_bytes), "natsConnection_Publish");
        must(natsSubscription_NextMsg(&message, subscription, IDLE_S * 1000), "natsSubscription_NextMsg");
        natsMsg_Destroy(message);
        if (index >= 0)
            seconds[index] = now() - start;
    }
    report_latency(seconds, samples);
}

int main(int count, char **arguments)
{
    const char *role = count > 4 ? arguments[2] : "";
    natsOptions *options;

    must(natsOptions_Create(&options), "natsOptions_Create");
    must(natsOptions_SetURL(options, arguments[1]), "natsOptions_SetURL");
    if (strcmp(role, "latency") == 0)
        must(natsOptions_SetSendAsap(options, true), "natsOptions_SetSendAsap");
    must(natsConnection_Connect(&connection, options), "natsConnection_Connect");
    if (strcmp(role, "subscribe") == 0)
        subscribe(number(arguments, 3));
    else if (strcmp(role, "publish") == 0)
        publish(number(arguments, 3), number(arguments, 4));
    else if (strcmp(role, "latency") == 0)
        latency(number(arguments, 3), number(arguments, 4), number(arguments, 5));
    else
        fail("usage", "URL subscribe|publish EVENTS EVENT_BYTES | URL latency WARM_UP SAMPLES EVENT_BYTES");
    natsConnection_Destroy(connection);
    return 0;
}
