//! The examples, run as a reader runs them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::broker::Broker;
use crate::embedded::{TRACE, connect};
use crate::patience::{PATIENCE, await_value};
use crate::process::Process;
use crate::programs::rpc_server_at;

/// How long Cargo may take to build an example, and to wait until it has built others.
const BUILD_TIMEOUT: Duration = Duration::from_secs(600);

/// On Unix, Cargo replaces itself with the example after the build, so signals reach the example.
fn example(name: &str, url: &str, args: &[&str]) -> Process {
    let mut cargo = Command::new(env!("CARGO"));
    // The features of this test, so that Cargo has built the library already.
    let features = [("json", cfg!(feature = "json")), ("soak", cfg!(feature = "soak"))];
    let features = features.into_iter().filter(|(_, is_on)| *is_on);
    let features: Vec<_> = features.flat_map(|(name, _)| ["--features", name]).collect();
    cargo.args(["run", "--quiet"]).args(features).args(["--example", name, "--"]).args(args);
    Process::from(cargo.current_dir(env!("CARGO_MANIFEST_DIR")).env("AMQP_URL", url))
}

#[cfg(feature = "json")]
#[test]
fn json_service_answers_its_client() {
    let url = Broker::shared().virtual_host("json");
    let mut server = example("json_service", &url, &[]);
    server.wait_for_line("Awaiting orders on prices", BUILD_TIMEOUT);
    let ask = |item, count| {
        let mut client = example("json_service", &url, &[item, count]);
        let status = client.wait(3 * PATIENCE);
        (status.success(), client.stdout().to_string(), client.stderr().to_string())
    };
    assert_eq!(ask("bolts", "3"), (true, "36\n".into(), String::new()));
    let (success, stdout, stderr) = ask("unicorns", "1");
    assert_eq!((success, stdout.as_str()), (false, ""));
    assert!(stderr.contains("there are no unicorns"), "{stderr}");

    let client = connect(&url, "prices");
    let price = |body: &str| client.request(body).method("price").reply();
    let reply = price(r#"{"item": "nuts", "count": 2}"#).unwrap();
    assert_eq!((reply.body(), reply.content_type()), (&b"10"[..], Some("application/json")));
    let error = price(r#"{"item": "nuts", "count": -2}"#).unwrap_err();
    assert_eq!(error.kind(), "INVALID_ARGUMENT");
    let why = "count: invalid value: integer `-2`, expected u32 at line 1 column";
    assert!(error.to_string().contains(why), "{error}");
}

/// The bodies are those of NestJS's `ClientRMQ`.
#[test]
fn nestjs_example_answers_in_the_form_of_nestjs() {
    let url = Broker::shared().virtual_host("nestjs");
    let mut server = example("nestjs", &url, &[]);
    server.wait_for_line("Awaiting NestJS on sums", BUILD_TIMEOUT);
    let client = connect(&url, "sums");
    let answer = |request: &str| String::from_utf8(client.call(request).unwrap()).unwrap();
    let sum = r#"{"pattern": "sum", "data": [1, 2, 3.5], "id": "7f"}"#;
    assert_eq!(answer(sum), r#"{"isDisposed":true,"response":6.5}"#);
    for (request, status) in [
        (r#"{"pattern": "sum", "data": "7", "id": "7f"}"#, "INVALID_ARGUMENT"),
        (r#"{"pattern": {"cmd": "sum"}, "data": [], "id": "7f"}"#, "UNIMPLEMENTED"),
        ("sum", "INVALID_ARGUMENT"),
    ] {
        let answer = answer(request);
        assert!(answer.starts_with(r#"{"err":{"message":"#), "{answer}");
        assert!(
            answer.ends_with(&format!(r#""status":"{status}"}},"isDisposed":true}}"#)),
            "{answer}"
        );
    }
}

#[test]
fn nested_call_passes_on_deadline_and_trace() {
    let mut example = example("nested_call", &Broker::shared().virtual_host("nested"), &[]);
    for (item, answer) in [("bolts", "7"), ("unicorns", "NOT_FOUND: there is no such item")] {
        let left = ["orders", "stock"].map(|service| {
            let line = example.wait_for_line(&format!("{service}: "), BUILD_TIMEOUT);
            let seconds = line.strip_prefix(&format!("{service}: ")).and_then(|rest| {
                let left = rest.strip_suffix(&format!(" left, trace {TRACE}"))?;
                left.strip_suffix('s')?.parse::<f64>().ok()
            });
            seconds.unwrap_or_else(|| panic!("{line}"))
        });
        assert!(left[1] <= left[0] && left[0] <= 5.0, "{left:?}");
        let line = example.wait_for_line(item, PATIENCE);
        assert_eq!(line, format!("{item}: {answer}"));
    }
    assert!(example.wait(PATIENCE).success(), "{}", example.stderr());
}

#[test]
fn drain_answers_begun_jobs_and_returns_the_rest() {
    const WORKERS: usize = 4;
    let url = Broker::shared().virtual_host("drain");
    let ready = || {
        let mut pool = example("drain", &url, &[]);
        pool.wait_for_line("Awaiting jobs on jobs", BUILD_TIMEOUT);
        pool
    };
    let mut first = ready();
    let client = connect(&url, "jobs");
    let job = || client.send_timeout("500", 3 * PATIENCE).expect("the queue exists");
    let jobs: Vec<_> = (0..12 * WORKERS).map(|_| job()).collect();
    for _ in 0..WORKERS {
        first.wait_for_line("begun with a job of 500 ms", PATIENCE);
    }
    let done_first = drain(first);
    assert!((WORKERS..jobs.len()).contains(&done_first), "{done_first} jobs done");

    let second = ready();
    let all = jobs.len();
    for job in jobs {
        assert_eq!(job.wait().unwrap(), b"worked for 500 ms");
    }
    assert_eq!(done_first + drain(second), all, "each job is done once");
}

/// Stops the pool, and returns how many jobs it has done: all that it had begun.
fn drain(mut pool: Process) -> usize {
    pool.signal("TERM");
    assert!(pool.wait(PATIENCE).success(), "{}", pool.stderr());
    let stdout = pool.stdout();
    let begun = stdout.matches("begun with").count();
    assert!(stdout.ends_with(&format!("{begun} jobs done\n")), "{stdout}");
    begun
}

#[test]
fn web_front_serves_concurrently_and_maps_errors_to_statuses() {
    let url = Broker::shared().virtual_host("front");
    let mut front = example("web_front", &url, &["127.0.0.1:0"]);
    let address =
        front.wait_for_line("http://127.0.0.1:", BUILD_TIMEOUT).split_off("http://".len());
    let get = |path: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: */*\r\n\r\n").unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        let (head, body) = response.split_once("\r\n\r\n").expect(&response);
        let status = head.lines().next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
        format!("{}: {}", status.expect(&response), body.trim_end())
    };
    assert_eq!(get("/fib/10"), "503 Service Unavailable: UNAVAILABLE");
    let server = rpc_server_at(&url, "rpc_queue", &[]);
    assert_eq!(get("/fib/10"), "200 OK: 55");
    assert_eq!(get("/fib/187"), "400 Bad Request: OUT_OF_RANGE");
    assert_eq!(get("/fib/ten"), "400 Bad Request: INVALID_ARGUMENT");
    assert_eq!(get("/"), "404 Not Found: ask for /fib/N");

    let client = connect(&url, "rpc_queue");
    server.signal("STOP");
    thread::scope(|scope| {
        // The stopped server has one request and three wait, so the front has made all four calls.
        let gets = [(); 4].map(|()| scope.spawn(|| get("/fib/10")));
        await_value(|| client.queue().unwrap().messages, |waiting| *waiting == 3);
        for get in gets {
            assert_eq!(get.join().unwrap(), "504 Gateway Timeout: DEADLINE_EXCEEDED");
        }
    });
    server.signal("CONT");
    await_value(|| get("/fib/10"), |answer| answer == "200 OK: 55");
}

/// Each line is a series with a number, as the text format of Prometheus demands.
#[test]
fn metrics_of_both_sides_can_be_scraped() {
    let url = Broker::shared().virtual_host("metrics");
    let mut metrics = example("metrics", &url, &["127.0.0.1:0"]);
    let address = metrics.wait_for_line("http://", BUILD_TIMEOUT).split_off("http://".len());
    let (address, path) = address.split_once('/').unwrap();
    let client = connect(&url, "rpc_queue");
    assert_eq!(client.request("187").method("any").call().unwrap_err().kind(), "OUT_OF_RANGE");
    let scrape = || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET /{path} HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response.split_once("\r\n\r\n").expect(&response).1.to_string()
    };
    // The hook runs after the reply.
    let text = await_value(scrape, |text| text.contains("OUT_OF_RANGE"));
    for line in text.lines() {
        let (series, value) = line.rsplit_once(' ').expect(line);
        assert!(series.starts_with("rpc_") && series.ends_with('}'), "{line}");
        value.parse::<f64>().expect(line);
    }
    for series in [
        "rpc_client_call_duration_seconds_count{rpc_method=\"fib\",rpc_response_status_code=\"OK\"} 1",
        "rpc_server_call_duration_seconds_bucket{rpc_method=\"fib\",rpc_response_status_code=\"OK\",le=\"+Inf\"} 1",
        "rpc_server_call_duration_seconds_count{rpc_method=\"other\",rpc_response_status_code=\"OUT_OF_RANGE\"} 1",
    ] {
        assert!(text.contains(series), "{series} is missing in\n{text}");
    }
}
