use super::*;
use crate::error::Error;
use crate::frames::Delivery;
use crate::server::inbox::Withdrawal;
use crate::wire::Reply;

fn delivery(tag: u64, body: &str, redelivered: bool) -> Arc<Request> {
    let message = Request::new(body).delivery.message;
    Arc::new(Request::from_delivery(Delivery { tag, redelivered, message }))
}

fn finish(outcomes: &Outcomes, inbox: &Inbox) {
    let known = Known::Finished { outcome: Ok(Reply::from("done")), lost_connections: 0 };
    outcomes.finish(inbox, known, true);
}

fn begin(outcomes: &Outcomes, inbox: &Inbox, request: &Arc<Request>) -> Begun {
    outcomes.begin(inbox, request, || false).expect("nothing is over")
}

/// A quorum queue whose nodes lost each other for a moment delivers all of this again, on the
/// same channel.
#[test]
fn requests_delivered_again_beyond_the_prefetch_are_not_executed_again() {
    for prefetch in [1, 4] {
        let (outcomes, inbox) = (Outcomes::default(), Arc::new(Inbox::new(prefetch)));
        outcomes.add(Weak::new(), &inbox);
        let count = u64::from(prefetch);
        for tag in 1..=count {
            let request = delivery(tag, &tag.to_string(), false);
            assert!(matches!(begin(&outcomes, &inbox, &request), Begun::Execute));
            finish(&outcomes, &inbox);
        }
        for tag in 1..=count {
            let again = delivery(count + tag, &tag.to_string(), true);
            let begun = begin(&outcomes, &inbox, &again);
            assert!(matches!(begun, Begun::Known(Known::Finished { .. })), "{tag}");
            finish(&outcomes, &inbox);
        }
        assert!(!outcomes.has_replied());
        begin(&outcomes, &inbox, &delivery(3 * count, "new", false));
        assert!(outcomes.has_replied());
    }
}

/// It delivers their requests again, although it may have their replies.
#[test]
fn requests_that_the_broker_took_back_are_not_executed_again() {
    let (outcomes, inbox) = (Outcomes::default(), Arc::new(Inbox::new(1)));
    outcomes.add(Weak::new(), &inbox);
    begin(&outcomes, &inbox, &delivery(1, "7", false));
    finish(&outcomes, &inbox);
    inbox.withdraw(Withdrawal::TimedOut, Error::Closed);
    begin(&outcomes, &inbox, &delivery(2, "8", false));
    assert_eq!(outcomes.unproved(), 1, "the delivery is older than the withdrawal");
    outcomes.all_proved(&inbox);
    assert_eq!(outcomes.unproved(), 0);
    let again = outcomes.begin(&inbox, &delivery(3, "7", true), || false);
    assert!(matches!(again, Some(Begun::Known(Known::Settled))));
}

/// It may be answered by nobody until the broker has noticed the end of the connection.
#[test]
fn reply_on_a_lost_connection_counts_as_lost_until_the_broker_had_time_to_ask_for_it() {
    let reply = |notice| {
        let known = Known::Finished { outcome: Ok(Reply::from("done")), lost_connections: 0 };
        let since = Instant::now();
        let kept = Some(Kept { since, notice });
        Entry { tag: 1, key: (0, 0), finished: since, known, kept }
    };
    let (noticed, unnoticed) = (reply(Duration::ZERO), reply(Duration::from_secs(3600)));
    assert!(noticed.is_lost(None) && unnoticed.is_lost(None));
    let consumed = Some(Instant::now());
    assert!(!noticed.is_lost(consumed) && unnoticed.is_lost(consumed));
    assert!(reply(Duration::ZERO).is_lost(consumed), "no worker has consumed since");
}

/// Each would otherwise take the other for the one that executes it.
#[test]
fn workers_that_wait_for_an_outcome_do_not_wait_for_each_other() {
    let outcomes = Outcomes::default();
    let [first, waiting, last] = [(); 3].map(|()| Arc::new(Inbox::new(1)));
    [&first, &waiting, &last].into_iter().for_each(|inbox| outcomes.add(Weak::new(), inbox));
    let request = delivery(1, "7", false);
    begin(&outcomes, &first, &request);
    let again = delivery(1, "7", true);
    assert!(outcomes.begin(&waiting, &again, || true).is_none());
    outcomes.remove(&first);
    assert!(matches!(begin(&outcomes, &last, &again), Begun::Execute));
}
