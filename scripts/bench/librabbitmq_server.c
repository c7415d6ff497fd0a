/* The RPC server on librabbitmq (rabbitmq-c), as tutorial six has it: one
 * request at a time, reply first, then acknowledge. It answers with a Fibonacci
 * number, or with `--echo` the request's own body. Its replies carry the
 * properties that this crate's carry; with `--lean`, only the tutorial's one. */
#include "librabbitmq_common.h"

static void answer(amqp_connection_state_t connection, const amqp_message_t *request, int echo,
                   int lean);
static const char *fib_of(amqp_bytes_t number, char text[40]);

int main(int argc, char **argv) {
  char *url = "amqp://guest:guest@localhost:5672/%2f", *queue = "rpc_queue";
  int prefetch = 1, echo = 0, lean = 0;
  static const struct option options[] = {{"url", required_argument, NULL, 'u'},
                                          {"queue", required_argument, NULL, 'q'},
                                          {"prefetch", required_argument, NULL, 'p'},
                                          {"echo", no_argument, NULL, 'e'},
                                          {"lean", no_argument, NULL, 'l'},
                                          TLS_OPTIONS,
                                          {NULL, 0, NULL, 0}};
  for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
    switch (option) {
      case 'u': url = optarg; break;
      case 'q': queue = optarg; break;
      case 'p': prefetch = atoi(optarg); break;
      case 'e': echo = 1; break;
      case 'l': lean = 1; break;
      default: if (!take_tls_option(option)) return 64;
    }
  }

  amqp_connection_state_t connection = open_connection(url);
  amqp_bytes_t name = amqp_cstring_bytes(queue);
  amqp_queue_declare(connection, CHANNEL, name, 0, /*durable*/ 1, 0, 0, amqp_empty_table);
  check_reply(amqp_get_rpc_reply(connection), "Could not declare the queue");
  amqp_basic_qos(connection, CHANNEL, 0, (uint16_t)prefetch, 0);
  check_reply(amqp_get_rpc_reply(connection), "Could not set the prefetch count");
  amqp_basic_consume(connection, CHANNEL, name, amqp_empty_bytes, 0, /*no_ack*/ 0, 0,
                     amqp_empty_table);
  check_reply(amqp_get_rpc_reply(connection), "Could not consume");
  printf("Awaiting RPC requests on %s\n", queue);
  fflush(stdout);

  for (;;) {
    amqp_envelope_t envelope;
    amqp_maybe_release_buffers(connection);
    check_reply(amqp_consume_message(connection, &envelope, NULL, 0), "Could not read a request");
    answer(connection, &envelope.message, echo, lean);
    check(amqp_basic_ack(connection, CHANNEL, envelope.delivery_tag, 0), "Could not acknowledge");
    amqp_destroy_envelope(&envelope);
  }
}

static void answer(amqp_connection_state_t connection, const amqp_message_t *request, int echo,
                   int lean) {
  amqp_flags_t needed = AMQP_BASIC_REPLY_TO_FLAG | AMQP_BASIC_CORRELATION_ID_FLAG;
  if ((request->properties._flags & needed) != needed) return; /* there is no requester to answer */

  char text[40];
  amqp_bytes_t reply = echo ? request->body : amqp_cstring_bytes(fib_of(request->body, text));
  amqp_basic_properties_t properties = {._flags = AMQP_BASIC_CORRELATION_ID_FLAG,
                                        .correlation_id = request->properties.correlation_id};
  if (!lean) {
    properties._flags |= AMQP_BASIC_APP_ID_FLAG;
    properties.app_id = amqp_cstring_bytes("librabbitmq");
  }
  check(amqp_basic_publish(connection, CHANNEL, amqp_empty_bytes, request->properties.reply_to, 0,
                           0, &properties, reply),
        "Could not publish a reply");
}

static const char *fib_of(amqp_bytes_t number, char text[40]) {
  char digits[8] = "", *end;
  if (number.len >= sizeof digits) return "invalid input";
  memcpy(digits, number.bytes, number.len);
  unsigned long n = strtoul(digits, &end, 10);
  return end != digits && *end == '\0' && n <= LARGEST_N ? fib((unsigned)n, text) : "invalid input";
}
