/* Tutorial six, client side, on librabbitmq (rabbitmq-c): one thread keeps
 * `--in-flight` requests outstanding and checks every reply.
 *
 * The library hands the three frames of a publish to the kernel with MSG_MORE
 * on the first two, so that a publish leaves as one segment. */
#include "librabbitmq_common.h"

#include <sys/random.h>
#include <time.h>

enum { UUID_LENGTH = 36, TIMEOUT_SECONDS = 30 };

struct call {
  char correlation_id[UUID_LENGTH + 1];
  int64_t published; /* nanoseconds */
};

static int64_t now(void);
static void new_uuid(char text[UUID_LENGTH + 1]);
static void publish(amqp_connection_state_t connection, const char *queue, amqp_bytes_t reply_queue,
                    const char *body, struct call *call);
static long take_call(struct call *calls, long waiting, amqp_bytes_t correlation_id,
                      int64_t *published);
static void report(long requests, long ok, double seconds, int64_t *latencies, int json);

int main(int argc, char **argv) {
  char *url = "amqp://guest:guest@localhost:5672/%2f", *queue = "rpc_queue", *n = "7";
  long requests = 10000, in_flight = 1;
  int json = 0;
  static const struct option options[] = {{"url", required_argument, NULL, 'u'},
                                          {"queue", required_argument, NULL, 'q'},
                                          {"requests", required_argument, NULL, 'r'},
                                          {"in-flight", required_argument, NULL, 'f'},
                                          {"n", required_argument, NULL, 'n'},
                                          {"json", no_argument, NULL, 'j'},
                                          {NULL, 0, NULL, 0}};
  for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
    switch (option) {
      case 'u': url = optarg; break;
      case 'q': queue = optarg; break;
      case 'r': requests = atol(optarg); break;
      case 'f': in_flight = atol(optarg); break;
      case 'n': n = optarg; break;
      case 'j': json = 1; break;
      default: return 64;
    }
  }
  if (requests < 1 || in_flight < 1 || atoi(n) < 0 || atoi(n) > LARGEST_N)
    die("Bad arguments", "--requests and --in-flight start at 1, --n ends at 186");

  amqp_connection_state_t connection = open_connection(url);
  amqp_queue_declare_ok_t *declared = amqp_queue_declare(
      connection, CHANNEL, amqp_empty_bytes, 0, 0, /*exclusive*/ 1, 1, amqp_empty_table);
  check_reply(amqp_get_rpc_reply(connection), "Could not declare the reply queue");
  amqp_bytes_t reply_queue = amqp_bytes_malloc_dup(declared->queue);
  amqp_basic_consume(connection, CHANNEL, reply_queue, amqp_empty_bytes, 0, /*no_ack*/ 1, 1,
                     amqp_empty_table);
  check_reply(amqp_get_rpc_reply(connection), "Could not consume the reply queue");

  char text[40];
  const char *expected = fib((unsigned)atoi(n), text);
  struct call *calls = calloc((size_t)in_flight, sizeof *calls);
  int64_t *latencies = calloc((size_t)requests, sizeof *latencies);
  if (calls == NULL || latencies == NULL) die("Could not start", "out of memory");

  long published = 0, answered = 0, waiting = 0, ok = 0;
  int64_t started = now();
  while (answered < requests) {
    while (waiting < in_flight && published < requests) {
      publish(connection, queue, reply_queue, n, &calls[waiting]);
      waiting++, published++;
    }

    amqp_envelope_t envelope;
    struct timeval timeout = {.tv_sec = TIMEOUT_SECONDS};
    amqp_maybe_release_buffers(connection);
    check_reply(amqp_consume_message(connection, &envelope, &timeout, 0), "Could not read a reply");

    amqp_bytes_t body = envelope.message.body;
    int64_t since;
    long left = take_call(calls, waiting, envelope.message.properties.correlation_id, &since);
    if (left < waiting) {
      waiting = left;
      ok += body.len == strlen(expected) && memcmp(body.bytes, expected, body.len) == 0;
      latencies[answered++] = now() - since;
    }
    amqp_destroy_envelope(&envelope);
  }
  double seconds = (double)(now() - started) / 1e9;
  close_connection(connection);

  report(requests, ok, seconds, latencies, json);
  return ok == requests ? 0 : 1;
}

static void publish(amqp_connection_state_t connection, const char *queue, amqp_bytes_t reply_queue,
                    const char *body, struct call *call) {
  new_uuid(call->correlation_id);
  call->published = now();
  amqp_basic_properties_t properties = {
      ._flags = AMQP_BASIC_REPLY_TO_FLAG | AMQP_BASIC_CORRELATION_ID_FLAG |
                AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG |
                AMQP_BASIC_EXPIRATION_FLAG | AMQP_BASIC_APP_ID_FLAG | AMQP_BASIC_TIMESTAMP_FLAG,
      .reply_to = reply_queue,
      .correlation_id = amqp_cstring_bytes(call->correlation_id),
      .content_type = amqp_cstring_bytes("text/plain"),
      .delivery_mode = AMQP_DELIVERY_NONPERSISTENT,
      .expiration = amqp_cstring_bytes("30000"),
      .app_id = amqp_cstring_bytes("librabbitmq_client"),
      .timestamp = (uint64_t)time(NULL),
  };
  check(amqp_basic_publish(connection, CHANNEL, amqp_empty_bytes, amqp_cstring_bytes(queue),
                           /*mandatory*/ 1, 0, &properties, amqp_cstring_bytes(body)),
        "Could not publish a request");
}

/* Finds the call that a reply belongs to and closes the gap it leaves. Replies
 * come nearly in the order of the requests, so the search ends early. Returns
 * how many calls still wait. */
static long take_call(struct call *calls, long waiting, amqp_bytes_t correlation_id,
                      int64_t *published) {
  if (correlation_id.len != UUID_LENGTH) return waiting;
  for (long i = 0; i < waiting; i++) {
    if (memcmp(calls[i].correlation_id, correlation_id.bytes, UUID_LENGTH) != 0) continue;
    *published = calls[i].published;
    memmove(&calls[i], &calls[i + 1], (size_t)(waiting - i - 1) * sizeof *calls);
    return waiting - 1;
  }
  return waiting;
}

static void new_uuid(char text[UUID_LENGTH + 1]) {
  unsigned char b[16];
  if (getrandom(b, sizeof b, 0) != sizeof b) die("Could not make a UUID", "getrandom failed");
  b[6] = (b[6] & 0x0f) | 0x40; /* version 4 */
  b[8] = (b[8] & 0x3f) | 0x80; /* variant of RFC 9562 */
  static const char hex[] = "0123456789abcdef";
  char *p = text;
  for (int i = 0; i < 16; i++) {
    if (i == 4 || i == 6 || i == 8 || i == 10) *p++ = '-';
    *p++ = hex[b[i] >> 4];
    *p++ = hex[b[i] & 15];
  }
  *p = '\0';
}

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int by_size(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x > y) - (x < y);
}

static void report(long requests, long ok, double seconds, int64_t *latencies, int json) {
  if (!json) {
    printf("%ld right of %ld, %.0f calls/s\n", ok, requests, (double)ok / seconds);
    return;
  }
  double sum = 0;
  qsort(latencies, (size_t)requests, sizeof *latencies, by_size);
  for (long i = 0; i < requests; i++) sum += (double)latencies[i];
  printf("{\"requests\":%ld,\"ok\":%ld,\"errors\":%ld,\"seconds\":%.6f,\"calls_per_second\":%.1f,"
         "\"latency_us\":{\"mean\":%.1f",
         requests, ok, requests - ok, seconds, (double)ok / seconds, sum / (double)requests / 1e3);
  static const struct { const char *name; double share; } percentiles[] = {
      {"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p999", 0.999}, {"max", 1}};
  for (size_t i = 0; i < sizeof percentiles / sizeof *percentiles; i++) {
    long at = (long)(percentiles[i].share * (double)requests);
    if (at > requests - 1) at = requests - 1;
    printf(",\"%s\":%.1f", percentiles[i].name, (double)latencies[at] / 1e3);
  }
  printf("}}\n");
}
