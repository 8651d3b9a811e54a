/* The floor: how fast three hosts take multicast when nothing is promised.
 *
 *     floor ADDRESS subscribe EVENTS EVENT_BYTES
 *     floor ADDRESS publish EVENTS EVENT_BYTES
 *     floor ADDRESS latency WARM_UP SAMPLES EVENT_BYTES
 *
 * Datagrams of 1472 bytes are handed over 44 at a time, to be cut by the kernel (UDP_SEGMENT) or below, and are taken
 * joined again (UDP_GRO). Each has a header of 8 bytes; behind it is a piece of the stream of events.
 */

#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "client.h"

#define GROUP "239.192.77.3"
#define PORT 5405
#define DATAGRAM 1472
#define PAYLOAD (DATAGRAM - (int)sizeof(struct header))
#define SEGMENTS 44 /* of one buffer: below 64 KiB */
#define BUFFERS 8   /* of one system call */
#define BUFFER_BYTES 65536
#define SOCKET_BYTES (32 << 20)
#define QUIET_MS 500 /* then all has come that will come */

struct header {
    uint32_t asks; /* whether an answer is wanted */
    uint32_t sample;
};

static struct sockaddr_in group = {.sin_family = AF_INET};
static unsigned char memory[BUFFERS][BUFFER_BYTES];

static void set(int descriptor, int level, int name, const void *value, size_t size, const char *what)
{
    if (setsockopt(descriptor, level, name, value, (socklen_t)size) != 0)
        fail(what, strerror(errno));
}

static int open_socket(const char *address, int port)
{
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int descriptor = socket(AF_INET, SOCK_DGRAM, 0), yes = 1, bytes = SOCKET_BYTES;
    struct in_addr interface;

    inet_pton(AF_INET, GROUP, &group.sin_addr);
    group.sin_port = htons(PORT);
    inet_pton(AF_INET, address, &interface);
    set(descriptor, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes, "SO_REUSEADDR");
    set(descriptor, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes, "SO_RCVBUFFORCE");
    set(descriptor, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes, "SO_SNDBUFFORCE");
    set(descriptor, IPPROTO_IP, IP_MULTICAST_IF, &interface, sizeof interface, "IP_MULTICAST_IF");
    if (bind(descriptor, (struct sockaddr *)&own, sizeof own) != 0)
        fail("bind", strerror(errno));
    if (port != 0) {
        struct ip_mreqn membership = {.imr_multiaddr = group.sin_addr, .imr_address = interface};
        set(descriptor, IPPROTO_IP, IP_ADD_MEMBERSHIP, &membership, sizeof membership, "IP_ADD_MEMBERSHIP");
        set(descriptor, SOL_UDP, UDP_GRO, &yes, sizeof yes, "UDP_GRO");
    }
    return descriptor;
}

static void wait_at_most(int descriptor, int ms)
{
    struct timeval timeout = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
    set(descriptor, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout, "SO_RCVTIMEO");
}

static int segment_bytes(struct msghdr *message, int length)
{
    for (struct cmsghdr *one = CMSG_FIRSTHDR(message); one != NULL; one = CMSG_NXTHDR(message, one))
        if (one->cmsg_level == SOL_UDP && one->cmsg_type == UDP_GRO)
            return *(int *)CMSG_DATA(one);
    return length;
}

static void subscribe(int descriptor, long events, long event_bytes)
{
    long long expected = (long long)events * event_bytes, bytes = 0, early = 0;
    double first = 0, last = 0;
    struct mmsghdr messages[BUFFERS];
    struct iovec pieces[BUFFERS];
    struct sockaddr_in senders[BUFFERS];
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control[BUFFERS];

    say_ready();
    while (bytes < expected) {
        for (int i = 0; i < BUFFERS; i++) {
            pieces[i] = (struct iovec){memory[i], BUFFER_BYTES};
            messages[i].msg_hdr = (struct msghdr){.msg_name = &senders[i], .msg_namelen = sizeof senders[i],
                                                  .msg_iov = &pieces[i], .msg_iovlen = 1,
                                                  .msg_control = &control[i], .msg_controllen = sizeof control[i]};
        }
        int found = recvmmsg(descriptor, messages, BUFFERS, MSG_WAITFORONE, NULL);
        if (found < 0) {
            if (errno == EAGAIN)
                break;
            fail("recvmmsg", strerror(errno));
        }
        last = now();
        for (int i = 0; i < found; i++) {
            int length = (int)messages[i].msg_len, segment = segment_bytes(&messages[i].msg_hdr, length);
            int count = (length + segment - 1) / segment;
            struct header *header = (struct header *)memory[i];
            if (header->asks) {
                uint32_t sample = header->sample;
                sendto(descriptor, &sample, sizeof sample, 0, (struct sockaddr *)&senders[i], sizeof senders[i]);
            }
            bytes += length - count * (long long)sizeof(struct header);
        }
        if (first == 0) {
            first = last;
            early = bytes;
            wait_at_most(descriptor, QUIET_MS);
        }
    }
    report_rate((bytes - early) / event_bytes, first, last, (expected - bytes) / event_bytes);
}

static void publish(int descriptor, long events, long event_bytes)
{
    long long left = (long long)events * event_bytes;
    int segment = DATAGRAM;
    double first;

    set(descriptor, SOL_UDP, UDP_SEGMENT, &segment, sizeof segment, "UDP_SEGMENT");
    for (int i = 0; i < BUFFERS; i++)
        memset(memory[i], 0, BUFFER_BYTES);
    say_ready();
    wait_go();
    first = now();
    while (left > 0) {
        struct mmsghdr messages[BUFFERS] = {0};
        struct iovec pieces[BUFFERS];
        unsigned count = 0;
        for (; count < BUFFERS && left > 0; count++) {
            long long payload = left < SEGMENTS * PAYLOAD ? left : SEGMENTS * PAYLOAD;
            long long headers = (payload + PAYLOAD - 1) / PAYLOAD * (long long)sizeof(struct header);
            pieces[count] = (struct iovec){memory[count], (size_t)(payload + headers)};
            messages[count].msg_hdr = (struct msghdr){.msg_name = &group, .msg_namelen = sizeof group,
                                                      .msg_iov = &pieces[count], .msg_iovlen = 1};
            left -= payload;
        }
        for (unsigned sent = 0; sent < count;) {
            int done = sendmmsg(descriptor, messages + sent, count - sent, 0);
            if (done < 0 && errno != ENOBUFS)
                fail("sendmmsg", strerror(errno));
            sent += done > 0 ? (unsigned)done : 0;
        }
    }
    report_rate(events, first, now(), 0);
}

static void latency(int descriptor, long warm_up, long samples, long event_bytes)
{
    double *seconds = calloc((size_t)samples, sizeof *seconds);
    size_t size = sizeof(struct header) + (size_t)event_bytes;
    struct header *header = (struct header *)memory[0];

    wait_at_most(descriptor, IDLE_S * 1000);
    say_ready();
    wait_go();
    for (long index = -warm_up; index < samples; index++) {
        uint32_t answered;
        double start = now();
        if (index == 0)
            begun_cpu = cpu();
        *header = (struct header){.asks = 1, .sample = (uint32_t)(index + warm_up)};
        if (sendto(descriptor, memory[0], size, 0, (struct sockaddr *)&group, sizeof group) < 0)
            fail("sendto", strerror(errno));
        do {
            if (recv(descriptor, &answered, sizeof answered, 0) < 0)
                fail("latency", "an answer has not come");
        } while (answered != header->sample);
        if (index >= 0)
            seconds[index] = now() - start;
    }
    report_latency(seconds, samples);
}

int main(int count, char **arguments)
{
    const char *role = count > 4 ? arguments[2] : "";

    if (strcmp(role, "subscribe") == 0)
        subscribe(open_socket(arguments[1], PORT), number(arguments, 3), number(arguments, 4));
    else if (strcmp(role, "publish") == 0)
        publish(open_socket(arguments[1], 0), number(arguments, 3), number(arguments, 4));
    else if (strcmp(role, "latency") == 0)
        latency(open_socket(arguments[1], 0), number(arguments, 3), number(arguments, 4), number(arguments, 5));
    else
        fail("usage", "ADDRESS subscribe|publish EVENTS EVENT_BYTES | ADDRESS latency WARM_UP SAMPLES EVENT_BYTES");
    return 0;
}
