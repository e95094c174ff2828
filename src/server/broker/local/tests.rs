use super::*;
use crate::pipeline::request::Request;
use crate::server::job::{JobSpec, Output, random_hex};
use crate::server::limits::{Charge, Plan};
use crate::server::webhook::Webhook;
use std::sync::Arc;

fn new(owner: &str, key: Option<(&str, &str)>) -> NewJob {
    let spec = JobSpec::new(Request::new("a fox").seed(u64::MAX), "flux-tiny");
    NewJob {
        charge: Charge { images: 1, pixels: 100 },
        idempotency: key.map(|(key, hash)| (key.into(), hash.into())),
        alike: random_hex(4).unwrap(),
        ..NewJob::new(random_hex(16).unwrap(), owner, spec)
    }
}

fn submit(broker: &LocalBroker, owner: &str) -> String {
    match broker.submit(new(owner, None)).unwrap() {
        Submitted::New(job, _) => job.id,
        other => panic!("{other:?}"),
    }
}

fn state(broker: &LocalBroker, id: &str) -> State {
    broker.job(id, "a").unwrap().unwrap().state
}

#[test]
fn a_job_runs_at_most_twice_across_restarts_and_queued_ones_stay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.sqlite");
    let open = || LocalBroker::open(&path, 8).unwrap();
    let broker = open();
    let ids = [submit(&broker, "a"), submit(&broker, "a"), submit(&broker, "a")];
    let job = broker.next(None).unwrap().unwrap();
    assert_eq!((job.id.as_str(), job.attempts, job.state), (&*ids[0], 1, State::Running));
    assert_eq!(job.spec.unwrap().request.seed, Some(u64::MAX));
    drop(broker);

    let broker = open();
    assert_eq!(broker.counts(), Counts { queued: 3, running: 0 });
    assert_eq!(broker.next(None).unwrap().unwrap().id, ids[0]);
    drop(broker);

    let broker = open();
    let job = broker.job(&ids[0], "a").unwrap().unwrap();
    assert_eq!((job.state, job.fault.unwrap().code.as_str()), (State::Failed, "worker_died"));
    let second = broker.next(None).unwrap().unwrap();
    assert_eq!(second.id, ids[1]);
    // Given back without blame, then with it, then once too often.
    broker.give_back(&ids[1], false).unwrap();
    assert_eq!(broker.next(None).unwrap().unwrap().attempts, 1);
    broker.give_back(&ids[1], true).unwrap();
    assert_eq!(broker.next(None).unwrap().unwrap().attempts, 2);
    broker.give_back(&ids[1], true).unwrap();
    assert_eq!(state(&broker, &ids[1]), State::Failed);
    assert_eq!(broker.counts(), Counts { queued: 1, running: 0 });
}

#[test]
fn the_queue_is_bounded_and_idempotency_keys_name_one_job() {
    let folder = tempfile::tempdir().unwrap();
    let broker = LocalBroker::open(&folder.path().join("jobs.sqlite"), 2).unwrap();
    let first = match broker.submit(new("a", Some(("k", "1")))).unwrap() {
        Submitted::New(job, _) => job,
        other => panic!("{other:?}"),
    };
    assert_eq!(broker.submit(new("a", Some(("k", "1")))).unwrap(), Submitted::Same(first.clone()));
    let fault = broker.submit(new("a", Some(("k", "2")))).unwrap_err();
    assert_eq!((fault.status, fault.code.as_str()), (422, "idempotency_key_reuse"));
    // Another owner's key is another key.
    assert!(matches!(broker.submit(new("b", Some(("k", "2")))).unwrap(), Submitted::New(..)));
    let fault = broker.submit(new("c", None)).unwrap_err();
    assert_eq!((fault.status, fault.code.as_str()), (503, "queue_full"));
    assert!(fault.retry_after.is_some());
    assert_eq!(broker.submit(new("a", Some(("k", "1")))).unwrap(), Submitted::Same(first.clone()));
    // Nobody sees or stops another's job.
    assert_eq!(broker.job(&first.id, "b").unwrap(), None);
    assert_eq!(broker.cancel(&first.id, "b").unwrap(), None);
}

#[test]
fn cancelled_and_finished_jobs_stay_so_and_data_expires_before_rows() {
    let folder = tempfile::tempdir().unwrap();
    let broker = LocalBroker::open(&folder.path().join("jobs.sqlite"), 8).unwrap();
    let (queued, running) = (submit(&broker, "z"), submit(&broker, "a"));
    assert!(matches!(broker.cancel(&queued, "z").unwrap(), Some(Cancelled::Queued(_))));
    assert_eq!(broker.next(None).unwrap().unwrap().id, running);
    assert!(matches!(broker.cancel(&running, "a").unwrap(), Some(Cancelled::Running(_))));
    assert_eq!(state(&broker, &running), State::Canceling);
    // Its worker died before it had stopped.
    broker.give_back(&running, true).unwrap();
    assert_eq!(state(&broker, &running), State::Canceled);
    let done = submit(&broker, "a");
    broker.next(None).unwrap().unwrap();
    let output = Output { file: "x.png".into(), width: 16, height: 16, bytes: 3 };
    let outcome =
        Outcome::Succeeded { outputs: vec![output.clone()], settings: serde_json::json!({}) };
    broker.finish(&done, outcome).unwrap();
    broker.finish(&done, Outcome::Canceled).unwrap();
    let job = broker.job(&done, "a").unwrap().unwrap();
    assert_eq!((job.state, job.outputs), (State::Succeeded, vec![output]));
    let now = broker.clock().seconds();
    assert!(broker.expire(now - 60.0, 0.0).unwrap().is_empty());
    let expired = broker.expire(now + 1.0, 0.0).unwrap();
    assert_eq!(expired.len(), 3);
    assert_eq!(state(&broker, &done), State::Expired);
    assert!(broker.expire(now + 1.0, now + 1.0).unwrap().is_empty());
    assert_eq!(broker.list("a", 10).unwrap(), []);
    assert_eq!(broker.counts(), Counts::default());
}

#[test]
fn f43_limits_survive_a_restart_and_images_of_jobs_that_fail_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.sqlite");
    let open = || LocalBroker::open(&path, 100).unwrap();
    let plan = Arc::new(Plan::of(&["4/h", "3 images/h", "2 active"]).unwrap());
    let ask = |broker: &LocalBroker, owner: &str| {
        broker.submit(NewJob { plan: Some(plan.clone()), ..new(owner, None) }).unwrap()
    };
    let violated = |submitted: Submitted| match submitted {
        Submitted::Limited { violated, .. } => {
            violated.into_iter().map(|limit| limit.name).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    let broker = open();
    let Submitted::New(first, standings) = ask(&broker, "a") else { panic!() };
    assert_eq!(standings.iter().map(|s| s.remaining).collect::<Vec<_>>(), [3, 2, 1]);
    let Submitted::New(second, _) = ask(&broker, "a") else { panic!() };
    // Waiting and running jobs are active. Another owner has limits of its own.
    assert_eq!(violated(ask(&broker, "a")), ["active"]);
    assert_eq!(broker.next(None).unwrap().unwrap().id, first.id);
    assert_eq!(violated(ask(&broker, "a")), ["active"]);
    assert!(matches!(ask(&broker, "b"), Submitted::New(..)));
    let outcome = Outcome::Succeeded { outputs: vec![], settings: serde_json::json!({}) };
    broker.finish(&first.id, outcome).unwrap();
    broker.cancel(&second.id, "a").unwrap();
    // The image of the second came back; two requests count.
    let Submitted::New(third, standings) = ask(&broker, "a") else { panic!() };
    assert_eq!(standings.iter().map(|s| s.remaining).collect::<Vec<_>>(), [1, 1, 1]);
    drop(broker);

    let broker = open();
    let Submitted::New(_, standings) = ask(&broker, "a") else { panic!() };
    assert_eq!(standings.iter().map(|s| s.remaining).collect::<Vec<_>>(), [0, 0, 0]);
    broker.cancel(&third.id, "a").unwrap();
    assert_eq!(violated(ask(&broker, "a")), ["1h"]);
    // An hour later there is room again, whatever the clock of the machine says.
    broker.clock().advance(3600 * SECOND);
    assert!(matches!(ask(&broker, "a"), Submitted::New(..)));
}

fn done() -> Outcome {
    Outcome::Succeeded { outputs: vec![], settings: serde_json::json!({}) }
}

#[test]
fn calls_are_owed_across_restarts_until_they_are_settled_and_data_waits_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.sqlite");
    let open = || LocalBroker::open(&path, 100).unwrap();
    let ask = |broker: &LocalBroker, hook: bool| {
        let mut new = new("a", None);
        new.spec.webhook = hook.then(|| Webhook { url: "http://x/".into(), secret: None });
        match broker.submit(new).unwrap() {
            Submitted::New(job, _) => job.id,
            other => panic!("{other:?}"),
        }
    };
    let broker = open();
    let [first, second, third, plain] = [true, true, true, false].map(|hook| ask(&broker, hook));
    let owed = |broker: &LocalBroker| {
        broker.owed_calls().unwrap().into_iter().map(|job| job.id).collect::<Vec<_>>()
    };
    assert!(owed(&broker).is_empty(), "no job is over");
    broker.next(None).unwrap().unwrap();
    broker.finish(&first, done()).unwrap();
    broker.cancel(&second, "a").unwrap();
    broker.cancel(&plain, "a").unwrap();
    assert_eq!(owed(&broker), [first.clone(), second.clone()]);
    broker.call_settled(&second).unwrap();
    // Two processes end while the third job runs.
    assert_eq!(broker.next(None).unwrap().unwrap().id, third);
    drop(broker);
    let broker = open();
    assert_eq!(broker.next(None).unwrap().unwrap().id, third);
    drop(broker);
    let broker = open();
    assert_eq!(owed(&broker), [first.clone(), third.clone()]);
    assert!(broker.owed_calls().unwrap().iter().all(|job| job.spec.is_some()));
    let later = broker.clock().seconds() + 1.0;
    let mut expired = broker.expire(later, later).unwrap();
    expired.sort();
    let mut settled = vec![second, plain];
    settled.sort();
    assert_eq!(expired, settled);
    broker.call_settled(&first).unwrap();
    broker.call_settled(&third).unwrap();
    assert_eq!((owed(&broker), broker.expire(later, later).unwrap().len()), (vec![], 2));
    assert_eq!(broker.list("a", 10).unwrap(), []);
}

#[test]
fn jobs_with_the_same_images_are_found_in_their_order_and_only_while_they_wait() {
    let folder = tempfile::tempdir().unwrap();
    let broker = LocalBroker::open(&folder.path().join("jobs.sqlite"), 100).unwrap();
    let ask = |owner: &str, alike: &str| match broker
        .submit(NewJob { alike: alike.into(), ..new(owner, None) })
        .unwrap()
    {
        Submitted::New(job, _) => job.id,
        other => panic!("{other:?}"),
    };
    let ids = [("a", "x"), ("b", "y"), ("b", "x"), ("a", "x"), ("a", "x")].map(|(o, x)| ask(o, x));
    assert_eq!(broker.next(None).unwrap().unwrap().id, ids[0]);
    broker.cancel(&ids[4], "a").unwrap();
    broker.finish(&ids[0], done()).unwrap();
    for id in [&ids[2], &ids[3]] {
        let job = broker.next_alike(&ids[0]).unwrap().unwrap();
        assert_eq!((&job.id, job.state, job.attempts), (id, State::Running, 1));
        broker.finish(id, done()).unwrap();
    }
    assert_eq!(broker.next_alike(&ids[0]).unwrap(), None);
    assert_eq!(broker.counts(), Counts { queued: 1, running: 0 });
    assert_eq!(broker.next(None).unwrap().unwrap().id, ids[1]);
}

#[test]
fn the_data_of_jobs_that_are_over_is_forgotten_on_request_of_their_owner() {
    let folder = tempfile::tempdir().unwrap();
    let broker = LocalBroker::open(&folder.path().join("jobs.sqlite"), 100).unwrap();
    let id = submit(&broker, "a");
    assert!(!broker.forget(&id, "a").unwrap(), "it waits");
    broker.next(None).unwrap();
    broker.finish(&id, done()).unwrap();
    assert!(!broker.forget(&id, "b").unwrap());
    assert!(broker.forget(&id, "a").unwrap() && !broker.forget(&id, "a").unwrap());
    let job = broker.job(&id, "a").unwrap().unwrap();
    assert_eq!((job.state, job.spec, job.settings), (State::Expired, None, None));
}

#[test]
fn a_file_of_the_first_version_is_read_and_one_of_a_later_version_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.sqlite");
    let broker = LocalBroker::open(&path, 100).unwrap();
    let id = submit(&broker, "a");
    drop(broker);
    let db = rusqlite::Connection::open(&path).unwrap();
    let older = "DROP INDEX by_alike; DROP INDEX by_call; ALTER TABLE jobs DROP COLUMN alike;
                 ALTER TABLE jobs DROP COLUMN owes_call; PRAGMA user_version = 1;";
    db.execute_batch(older).unwrap();
    drop(db);
    let broker = LocalBroker::open(&path, 100).unwrap();
    assert_eq!(broker.next(None).unwrap().unwrap().id, id);
    assert_eq!(broker.next_alike(&id).unwrap(), None);
    drop(broker);
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 3).unwrap();
    let fault = LocalBroker::open(&path, 100).err().unwrap();
    assert!(fault.message.contains("found version 3"), "{}", fault.message);
}

#[test]
fn looks_do_not_wait_for_a_change_that_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let broker = LocalBroker::open(&folder.path().join("jobs.sqlite"), 100).unwrap();
    let id = submit(&broker, "a");
    let writing = lock(&broker.writer);
    writing.db.execute_batch("BEGIN IMMEDIATE; UPDATE jobs SET attempts = 7;").unwrap();
    assert_eq!(broker.job(&id, "a").unwrap().unwrap().attempts, 0);
    assert_eq!(broker.list("a", 5).unwrap().len(), 1);
    assert_eq!(broker.active("a").unwrap().len(), 1);
    assert_eq!((broker.counts().queued, broker.place(&id).unwrap().position), (1, 0));
    assert!(broker.owed_calls().unwrap().is_empty());
    writing.db.execute_batch("COMMIT").unwrap();
    assert_eq!(broker.job(&id, "a").unwrap().unwrap().attempts, 7);
}

#[test]
fn a_job_ends_though_its_end_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.sqlite");
    let broker = LocalBroker::open(&path, 10).unwrap();
    let (first, second) = (submit(&broker, "a"), submit(&broker, "a"));
    let ids: Vec<_> = (0..2).map(|_| broker.next(None).unwrap().unwrap().id).collect();
    assert_eq!(ids, [first.clone(), second.clone()]);
    let full = |on: &str| {
        let sql = format!("PRAGMA query_only = {on};");
        lock(&broker.writer).db.execute_batch(&sql).unwrap();
    };
    full("ON");
    let fault = Fault::new(500, "output_failed", "the disk is full");
    assert!(broker.finish(&first, Outcome::Failed(fault.clone())).is_err());
    let outputs = vec![Output { file: "x.png".into(), width: 1, height: 1, bytes: 9 }];
    let settings = serde_json::json!({"steps": 4});
    let drawn = Outcome::Succeeded { outputs: outputs.clone(), settings };
    assert!(broker.finish(&second, drawn).is_err());
    // Both are over for everybody who asks.
    let look = |broker: &LocalBroker, id: &str| broker.job(id, "a").unwrap().unwrap();
    let failed = look(&broker, &first);
    assert_eq!((failed.state, failed.fault), (State::Failed, Some(fault)));
    assert_eq!(look(&broker, &second).outputs, outputs);
    assert!(broker.active("a").unwrap().is_empty());
    assert_eq!(broker.counts(), Counts::default());
    assert!(matches!(broker.cancel(&first, "a").unwrap(), Some(Cancelled::Over(_))));
    // They are written once that is possible.
    full("OFF");
    assert!(broker.next(None).unwrap().is_none());
    drop(broker);
    let broker = LocalBroker::open(&path, 10).unwrap();
    assert_eq!(look(&broker, &first).state, State::Failed);
    assert_eq!(look(&broker, &second).state, State::Succeeded);
}
