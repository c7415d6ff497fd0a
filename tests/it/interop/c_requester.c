/* Sends requests with librabbitmq one by one, and prints a line with the body
 * and some properties of each reply.
 *
 *   c_requester URL QUEUE REPLY_TO BODY...
 *
 * REPLY_TO is the name of a durable queue, or amq.rabbitmq.reply-to. */
#include "librabbitmq_common.h"

enum { TIMEOUT_SECONDS = 20 };

static const char direct[] = "amq.rabbitmq.reply-to";

static void publish(amqp_connection_state_t connection, const char *queue, const char *reply_to,
                    const char *body, const char *correlation_id);
static int await_reply(amqp_connection_state_t connection, const char *correlation_id);
static void print_reply(const amqp_message_t *reply);
static amqp_bytes_t header(const amqp_table_t *headers, const char *name);

int main(int argc, char **argv) {
  if (argc < 5) return 64;
  const char *queue = argv[2], *reply_to = argv[3];
  amqp_connection_state_t connection = open_connection(argv[1]);
  amqp_bytes_t replies = amqp_cstring_bytes(reply_to);
  if (strcmp(reply_to, direct) != 0) {
    amqp_queue_declare(connection, CHANNEL, replies, 0, /*durable*/ 1, 0, 0, amqp_empty_table);
    check_reply(amqp_get_rpc_reply(connection), "Could not declare the reply queue");
  }
  /* The broker allows direct reply-to only without acknowledgements. */
  amqp_basic_consume(connection, CHANNEL, replies, amqp_empty_bytes, 0, /*no_ack*/ 1, 0,
                     amqp_empty_table);
  check_reply(amqp_get_rpc_reply(connection), "Could not consume replies");

  for (int i = 4; i < argc; i++) {
    char correlation_id[16];
    snprintf(correlation_id, sizeof correlation_id, "call %d", i);
    publish(connection, queue, reply_to, argv[i], correlation_id);
    while (!await_reply(connection, correlation_id)) continue;
  }
  close_connection(connection);
  return 0;
}

static void publish(amqp_connection_state_t connection, const char *queue, const char *reply_to,
                    const char *body, const char *correlation_id) {
  amqp_basic_properties_t properties = {
      ._flags = AMQP_BASIC_REPLY_TO_FLAG | AMQP_BASIC_CORRELATION_ID_FLAG,
      .reply_to = amqp_cstring_bytes(reply_to),
      .correlation_id = amqp_cstring_bytes(correlation_id),
  };
  check(amqp_basic_publish(connection, CHANNEL, amqp_empty_bytes, amqp_cstring_bytes(queue), 0, 0,
                           &properties, amqp_cstring_bytes(body)),
        "Could not publish a request");
}

/* Whether the next message was the reply to that request. */
static int await_reply(amqp_connection_state_t connection, const char *correlation_id) {
  amqp_envelope_t envelope;
  struct timeval timeout = {.tv_sec = TIMEOUT_SECONDS};
  amqp_maybe_release_buffers(connection);
  check_reply(amqp_consume_message(connection, &envelope, &timeout, 0), "Could not read a reply");
  amqp_bytes_t id = envelope.message.properties.correlation_id;
  int ours = id.len == strlen(correlation_id) && memcmp(id.bytes, correlation_id, id.len) == 0;
  if (ours) print_reply(&envelope.message);
  amqp_destroy_envelope(&envelope);
  return ours;
}

static void print_reply(const amqp_message_t *reply) {
  const amqp_basic_properties_t *properties = &reply->properties;
  amqp_bytes_t type = amqp_cstring_bytes("None"), status = type, body = reply->body;
  if (properties->_flags & AMQP_BASIC_TYPE_FLAG) type = properties->type;
  if (properties->_flags & AMQP_BASIC_HEADERS_FLAG)
    status = header(&properties->headers, "rpc-status");
  printf("type=%.*s rpc-status=%.*s body=%.*s\n", (int)type.len, (char *)type.bytes,
         (int)status.len, (char *)status.bytes, (int)body.len, (char *)body.bytes);
}

static amqp_bytes_t header(const amqp_table_t *headers, const char *name) {
  for (int i = 0; i < headers->num_entries; i++) {
    const amqp_table_entry_t *entry = &headers->entries[i];
    if (entry->key.len == strlen(name) && memcmp(entry->key.bytes, name, entry->key.len) == 0 &&
        entry->value.kind == AMQP_FIELD_KIND_UTF8)
      return entry->value.value.bytes;
  }
  return amqp_cstring_bytes("None");
}
