/* Shared by the C programs: Fibonacci numbers, errors, and connecting with
 * TCP_NODELAY set, with TLS if the URL asks for it. */
#ifndef LIBRABBITMQ_COMMON_H
#define LIBRABBITMQ_COMMON_H

#if __has_include(<rabbitmq-c/amqp.h>) /* where 0.12 moved its headers */
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/ssl_socket.h>
#include <rabbitmq-c/tcp_socket.h>
#else
#include <amqp.h>
#include <amqp_ssl_socket.h>
#include <amqp_tcp_socket.h>
#endif

#include <arpa/inet.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHANNEL = 1, FRAME_MAX = 131072, LARGEST_N = 186 }; /* fib(187) needs 129 bits */

static inline void die(const char *what, const char *why) {
  fprintf(stderr, "%s: %s.\n", what, why);
  exit(1);
}

static inline void check(int status, const char *what) {
  if (status < 0) die(what, amqp_error_string2(status));
}

static inline void check_reply(amqp_rpc_reply_t reply, const char *what) {
  if (reply.reply_type == AMQP_RESPONSE_NORMAL) return;
  if (reply.reply_type == AMQP_RESPONSE_LIBRARY_EXCEPTION)
    die(what, amqp_error_string2(reply.library_error));
  if (reply.reply_type == AMQP_RESPONSE_SERVER_EXCEPTION)
    die(what, "the broker closed the channel or the connection");
  die(what, "the connection ended");
}

/* The files for TLS, of the options `--tls-ca`, `--tls-cert` and `--tls-key`. */
static struct {
  const char *ca, *cert, *key;
} tls;

#define TLS_OPTIONS \
  {"tls-ca", required_argument, NULL, 'A'}, {"tls-cert", required_argument, NULL, 'C'}, \
      {"tls-key", required_argument, NULL, 'K'}

static inline int take_tls_option(int option) {
  switch (option) {
    case 'A': tls.ca = optarg; return 1;
    case 'C': tls.cert = optarg; return 1;
    case 'K': tls.key = optarg; return 1;
    default: return 0;
  }
}

static inline amqp_socket_t *new_socket(amqp_connection_state_t connection, int with_tls) {
  if (!with_tls) return amqp_tcp_socket_new(connection);
  amqp_socket_t *socket = amqp_ssl_socket_new(connection);
  check(amqp_ssl_socket_set_cacert(socket, tls.ca), "Could not use --tls-ca");
  check(amqp_ssl_socket_set_key(socket, tls.cert, tls.key), "Could not use --tls-cert");
  amqp_ssl_socket_set_verify_peer(socket, 1);
  /* The certificate is for an address, which this library does not compare. */
  amqp_ssl_socket_set_verify_hostname(socket, 0);
  return socket;
}

static inline amqp_connection_state_t open_connection(const char *url) {
  struct amqp_connection_info broker;
  /* A copy, because amqp_parse_url changes it and `broker` points into it. */
  check(amqp_parse_url(strdup(url), &broker), "Could not parse the URL");

  amqp_connection_state_t connection = amqp_new_connection();
  amqp_socket_t *socket = new_socket(connection, broker.ssl);
  check(amqp_socket_open(socket, broker.host, broker.port), "Could not connect");

  int on = 1;
  if (setsockopt(amqp_socket_get_sockfd(socket), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0)
    die("Could not set TCP_NODELAY", "setsockopt failed");

  check_reply(amqp_login(connection, broker.vhost, AMQP_DEFAULT_MAX_CHANNELS, FRAME_MAX, 0,
                         AMQP_SASL_METHOD_PLAIN, broker.user, broker.password),
              "Could not log in");
  amqp_channel_open(connection, CHANNEL);
  check_reply(amqp_get_rpc_reply(connection), "Could not open a channel");
  return connection;
}

static inline void close_connection(amqp_connection_state_t connection) {
  amqp_connection_close(connection, AMQP_REPLY_SUCCESS);
  amqp_destroy_connection(connection);
}

/* Writes fib(n) in decimal into the end of `text` and returns its first digit. */
static inline char *fib(unsigned n, char text[40]) {
  unsigned __int128 a = 0, b = 1;
  while (n-- > 0) {
    unsigned __int128 next = a + b;
    a = b;
    b = next;
  }
  char *digit = text + 39;
  *digit = '\0';
  do *--digit = (char)('0' + (int)(a % 10));
  while ((a /= 10) != 0);
  return digit;
}

#endif
