/* The RPC client on librabbitmq (rabbitmq-c), as tutorial six has it: one thread
 * keeps `--in-flight` requests outstanding and checks every reply.
 *
 * It asks for the Fibonacci number of `--n`, or with `--body-size` sends a body
 * of that many bytes and expects it back. It stops after `--requests` calls, or
 * once `--seconds` are over. Its requests carry the properties that this
 * crate's carry; with `--lean`, only the tutorial's two. With `--on-cue` it
 * connects, makes one call, prints `ready`, and waits for a line on standard
 * input; it prints its report before it disconnects, which it then does when
 * standard input closes.
 *
 * The library hands the three frames of a publish to the kernel with MSG_MORE
 * on the first two, so that a publish leaves as one segment. */
#include "librabbitmq_common.h"

#include <limits.h>
#include <sys/random.h>
#include <time.h>

enum { UUID_LENGTH = 36, TIMEOUT_SECONDS = 30 };

/* The calls to make, and how to make them. */
struct load {
  amqp_connection_state_t connection;
  const char *queue;
  amqp_bytes_t reply_queue, body, expected;
  const char *content_type;
  long in_flight;
  int lean;
};

struct call {
  char correlation_id[UUID_LENGTH + 1];
  int64_t published; /* nanoseconds; 0 once it has been answered */
};

/* The calls in the order of publishing, from `oldest` up to but without `next`.
 * `places` is a ring: call number i is at i % size. */
struct calls {
  struct call *places;
  long size, oldest, next;
};

struct tally {
  long answered, ok, size;
  double seconds;
  int64_t *latencies;
};

static struct tally run(const struct load *load, long requests, double seconds);
static void publish(const struct load *load, struct call *call);
static int64_t take_call(struct calls *calls, amqp_bytes_t correlation_id);
static void count(struct tally *tally, int64_t latency, int ok);
static int same(amqp_bytes_t a, amqp_bytes_t b);
static amqp_bytes_t echo_body(size_t size);
static void report(struct tally *tally, int json);
static void wait_for(char wanted);
static void new_uuid(char text[UUID_LENGTH + 1]);
static int64_t now(void);

int main(int argc, char **argv) {
  char *url = "amqp://guest:guest@localhost:5672/%2f", *n = "7", text[40];
  struct load load = {.queue = "rpc_queue", .in_flight = 1, .content_type = "text/plain"};
  long requests = -1, body_size = 0;
  double seconds = 0;
  int json = 0, on_cue = 0;
  static const struct option options[] = {{"url", required_argument, NULL, 'u'},
                                          {"queue", required_argument, NULL, 'q'},
                                          {"requests", required_argument, NULL, 'r'},
                                          {"seconds", required_argument, NULL, 's'},
                                          {"in-flight", required_argument, NULL, 'f'},
                                          {"n", required_argument, NULL, 'n'},
                                          {"body-size", required_argument, NULL, 'b'},
                                          {"lean", no_argument, NULL, 'l'},
                                          {"on-cue", no_argument, NULL, 'c'},
                                          {"json", no_argument, NULL, 'j'},
                                          TLS_OPTIONS,
                                          {NULL, 0, NULL, 0}};
  for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
    switch (option) {
      case 'u': url = optarg; break;
      case 'q': load.queue = optarg; break;
      case 'r': requests = atol(optarg); break;
      case 's': seconds = atof(optarg); break;
      case 'f': load.in_flight = atol(optarg); break;
      case 'n': n = optarg; break;
      case 'b': body_size = atol(optarg); break;
      case 'l': load.lean = 1; break;
      case 'c': on_cue = 1; break;
      case 'j': json = 1; break;
      default: if (!take_tls_option(option)) return 64;
    }
  }
  if (requests < 0) requests = seconds > 0 ? LONG_MAX : 10000;
  if (requests < 1 || load.in_flight < 1 || body_size < 0 || atoi(n) < 0 || atoi(n) > LARGEST_N)
    die("Bad arguments", "--requests and --in-flight start at 1, --n ends at 186");
  if (body_size > 0) {
    load.body = load.expected = echo_body((size_t)body_size);
    load.content_type = "application/octet-stream";
  } else {
    load.body = amqp_cstring_bytes(n);
    load.expected = amqp_cstring_bytes(fib((unsigned)atoi(n), text));
  }

  amqp_connection_state_t connection = load.connection = open_connection(url);
  amqp_queue_declare_ok_t *declared = amqp_queue_declare(
      connection, CHANNEL, amqp_empty_bytes, 0, 0, /*exclusive*/ 1, 1, amqp_empty_table);
  check_reply(amqp_get_rpc_reply(connection), "Could not declare the reply queue");
  load.reply_queue = amqp_bytes_malloc_dup(declared->queue);
  amqp_basic_consume(connection, CHANNEL, load.reply_queue, amqp_empty_bytes, 0, /*no_ack*/ 1, 1,
                     amqp_empty_table);
  check_reply(amqp_get_rpc_reply(connection), "Could not consume the reply queue");

  if (on_cue) {
    if (run(&load, 1, 0).ok != 1) die("Could not start", "the first reply is wrong");
    printf("ready\n");
    fflush(stdout);
    wait_for('\n');
  }
  struct tally tally = run(&load, requests, seconds);
  report(&tally, json);
  if (on_cue) wait_for(EOF);
  close_connection(connection);
  return tally.ok == tally.answered ? 0 : 1;
}

static struct tally run(const struct load *load, long requests, double seconds) {
  struct calls calls = {.size = 2 * load->in_flight};
  calls.places = calloc((size_t)calls.size, sizeof *calls.places);
  if (calls.places == NULL) die("Could not start", "out of memory");
  struct tally tally = {0};
  long published = 0, waiting = 0;
  int64_t started = now(), end = seconds > 0 ? started + (int64_t)(seconds * 1e9) : INT64_MAX;
  for (;;) {
    while (waiting < load->in_flight && published < requests && now() < end &&
           calls.next - calls.oldest < calls.size) {
      publish(load, &calls.places[calls.next++ % calls.size]);
      waiting++, published++;
    }
    if (waiting == 0) break;

    amqp_envelope_t envelope;
    struct timeval timeout = {.tv_sec = TIMEOUT_SECONDS};
    amqp_maybe_release_buffers(load->connection);
    check_reply(amqp_consume_message(load->connection, &envelope, &timeout, 0),
                "Could not read a reply");
    const amqp_basic_properties_t *properties = &envelope.message.properties;
    int64_t since = properties->_flags & AMQP_BASIC_CORRELATION_ID_FLAG
                        ? take_call(&calls, properties->correlation_id)
                        : 0;
    if (since != 0) {
      waiting--;
      count(&tally, now() - since, same(envelope.message.body, load->expected));
    }
    amqp_destroy_envelope(&envelope);
  }
  tally.seconds = (double)(now() - started) / 1e9;
  free(calls.places);
  return tally;
}

static void publish(const struct load *load, struct call *call) {
  new_uuid(call->correlation_id);
  call->published = now();
  amqp_basic_properties_t properties = {
      ._flags = AMQP_BASIC_REPLY_TO_FLAG | AMQP_BASIC_CORRELATION_ID_FLAG,
      .reply_to = load->reply_queue,
      .correlation_id = amqp_cstring_bytes(call->correlation_id),
  };
  char message_id[UUID_LENGTH + 1];
  if (!load->lean) {
    new_uuid(message_id);
    properties._flags |= AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_EXPIRATION_FLAG |
                         AMQP_BASIC_MESSAGE_ID_FLAG | AMQP_BASIC_TIMESTAMP_FLAG | AMQP_BASIC_APP_ID_FLAG;
    properties.content_type = amqp_cstring_bytes(load->content_type);
    properties.expiration = amqp_cstring_bytes("30000");
    properties.message_id = amqp_cstring_bytes(message_id);
    properties.timestamp = (uint64_t)time(NULL);
    properties.app_id = amqp_cstring_bytes("librabbitmq");
  }
  check(amqp_basic_publish(load->connection, CHANNEL, amqp_empty_bytes,
                           amqp_cstring_bytes(load->queue), /*mandatory*/ !load->lean, 0,
                           &properties, load->body),
        "Could not publish a request");
}

/* Finds the call of a reply, and returns when it was published, or 0 if the
 * reply belongs to no call. Replies arrive nearly in the order of the requests,
 * so the search ends early. */
static int64_t take_call(struct calls *calls, amqp_bytes_t correlation_id) {
  if (correlation_id.len != UUID_LENGTH) return 0;
  for (long i = calls->oldest; i < calls->next; i++) {
    struct call *call = &calls->places[i % calls->size];
    if (call->published == 0) continue;
    if (memcmp(call->correlation_id, correlation_id.bytes, UUID_LENGTH) != 0) continue;
    int64_t published = call->published;
    call->published = 0;
    while (calls->oldest < calls->next && calls->places[calls->oldest % calls->size].published == 0)
      calls->oldest++;
    return published;
  }
  return 0;
}

static void count(struct tally *tally, int64_t latency, int ok) {
  if (tally->answered == tally->size) {
    tally->size = tally->size == 0 ? 1024 : 2 * tally->size;
    tally->latencies = realloc(tally->latencies, (size_t)tally->size * sizeof latency);
    if (tally->latencies == NULL) die("Could not note a latency", "out of memory");
  }
  tally->latencies[tally->answered++] = latency;
  tally->ok += ok;
}

/* Compares the length and both ends: comparing all of a large body would cost
 * more than the call that is measured. */
static int same(amqp_bytes_t a, amqp_bytes_t b) {
  if (a.len != b.len) return 0;
  size_t part = a.len < 64 ? a.len : 64, rest = a.len - part;
  return memcmp(a.bytes, b.bytes, part) == 0 &&
         memcmp((char *)a.bytes + rest, (char *)b.bytes + rest, part) == 0;
}

static amqp_bytes_t echo_body(size_t size) {
  amqp_bytes_t body = amqp_bytes_malloc(size);
  if (body.bytes == NULL) die("Could not make the body", "out of memory");
  for (size_t i = 0; i < size; i++) ((unsigned char *)body.bytes)[i] = (unsigned char)(i % 251);
  return body;
}

/* Reads standard input up to this character, or to its end. */
static void wait_for(char wanted) {
  for (int c; (c = getchar()) != EOF && c != wanted;) continue;
}

static void new_uuid(char text[UUID_LENGTH + 1]) {
  /* Random bytes are read in advance, with one system call for many UUIDs, as
   * this crate does. */
  static unsigned char stock[256], *b = stock + sizeof stock;
  if (b == stock + sizeof stock) {
    if (getrandom(stock, sizeof stock, 0) != sizeof stock)
      die("Could not make a UUID", "getrandom failed");
    b = stock;
  }
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
  b += 16;
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

static void report(struct tally *tally, int json) {
  long requests = tally->answered, ok = tally->ok;
  double per_second = (double)ok / tally->seconds;
  if (!json) {
    printf("%ld right of %ld, %.0f calls/s\n", ok, requests, per_second);
    fflush(stdout);
    return;
  }
  double sum = 0;
  qsort(tally->latencies, (size_t)requests, sizeof *tally->latencies, by_size);
  for (long i = 0; i < requests; i++) sum += (double)tally->latencies[i];
  printf("{\"requests\":%ld,\"ok\":%ld,\"errors\":%ld,\"seconds\":%.6f,\"calls_per_second\":%.1f,"
         "\"latency_us\":{\"mean\":%.1f",
         requests, ok, requests - ok, tally->seconds, per_second, sum / (double)requests / 1e3);
  static const struct { const char *name; double share; } percentiles[] = {
      {"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p999", 0.999}, {"max", 1}};
  for (size_t i = 0; i < sizeof percentiles / sizeof *percentiles; i++) {
    long at = (long)(percentiles[i].share * (double)requests);
    if (at > requests - 1) at = requests - 1;
    printf(",\"%s\":%.1f", percentiles[i].name, (double)tally->latencies[at] / 1e3);
  }
  printf("}}\n");
  fflush(stdout);
}
