/* Tutorial six, server side, on librabbitmq (rabbitmq-c): one request at a
 * time, reply first, then acknowledge. */
#include "librabbitmq_common.h"

static void answer(amqp_connection_state_t connection, const amqp_message_t *request);

int main(int argc, char **argv) {
  char *url = "amqp://guest:guest@localhost:5672/%2f", *queue = "rpc_queue";
  int prefetch = 1;
  static const struct option options[] = {{"url", required_argument, NULL, 'u'},
                                          {"queue", required_argument, NULL, 'q'},
                                          {"prefetch", required_argument, NULL, 'p'},
                                          {NULL, 0, NULL, 0}};
  for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
    switch (option) {
      case 'u': url = optarg; break;
      case 'q': queue = optarg; break;
      case 'p': prefetch = atoi(optarg); break;
      default: return 64;
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
    answer(connection, &envelope.message);
    check(amqp_basic_ack(connection, CHANNEL, envelope.delivery_tag, 0), "Could not acknowledge");
    amqp_destroy_envelope(&envelope);
  }
}

static void answer(amqp_connection_state_t connection, const amqp_message_t *request) {
  amqp_flags_t needed = AMQP_BASIC_REPLY_TO_FLAG | AMQP_BASIC_CORRELATION_ID_FLAG;
  if ((request->properties._flags & needed) != needed) return; /* nobody to answer */

  char number[8] = "", text[40], *reply = "invalid input";
  if (request->body.len < sizeof number) {
    memcpy(number, request->body.bytes, request->body.len);
    char *end;
    unsigned long n = strtoul(number, &end, 10);
    if (end != number && *end == '\0' && n <= LARGEST_N) reply = fib((unsigned)n, text);
  }

  amqp_basic_properties_t properties = {._flags = AMQP_BASIC_CORRELATION_ID_FLAG,
                                        .correlation_id = request->properties.correlation_id};
  check(amqp_basic_publish(connection, CHANNEL, amqp_empty_bytes, request->properties.reply_to, 0,
                           0, &properties, amqp_cstring_bytes(reply)),
        "Could not publish a reply");
}
