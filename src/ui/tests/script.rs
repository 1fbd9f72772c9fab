//! The scripted run: the VMs of a server and three workers are there, k3s is brought to them; one worker
//! needs a second attempt, one fails, and the user stops the rest.

use crate::event::{Event, Failure, Kind, Outcome, StepInfo};
use crate::explain::FailureKind;

pub fn event(elapsed_ms: u64, kind: Kind) -> Event {
    Event { v: 1, seq: elapsed_ms, at: jiff::Timestamp::UNIX_EPOCH, elapsed_ms, kind }
}

pub fn info(id: &str, title: &str, after: &[&str]) -> StepInfo {
    let (place, _) = id.split_once('/').unwrap();
    StepInfo {
        id: id.into(),
        node: (place != "cluster").then(|| place.into()),
        title: title.into(),
        digest: "d".into(),
        after: after.iter().map(|id| (*id).to_owned()).collect(),
        reason: "not done yet".into(),
        needed: true,
    }
}

/// What the scripted run is planned to do. The VMs are there already.
pub fn plan() -> Vec<StepInfo> {
    let mut steps = vec![info("cluster/network", "create the network", &[])];
    steps.push(info("cluster/k3s", "download k3s", &[]));
    for node in ["server", "worker-1", "worker-2", "worker-3"] {
        let id = |phase: &str| format!("{node}/{phase}");
        steps.push(StepInfo { needed: false, ..info(&id("vm"), "boot the VM", &["cluster/network"]) });
        steps.push(info(&id("stage"), "copy k3s", &[&id("vm"), "cluster/k3s"]));
        let before = if node == "server" { id("stage") } else { "server/start".to_owned() };
        steps.push(info(&id("start"), "start k3s", &[&id("stage"), &before]));
        steps.push(info(&id("ready"), "wait for Ready", &[&id("start")]));
    }
    steps.push(info("cluster/kubeconfig", "write the kubeconfig", &["worker-1/ready", "worker-2/ready"]));
    steps
}

pub fn began(steps: Vec<StepInfo>) -> Kind {
    Kind::RunStarted {
        run: "20261122-060000".into(),
        cluster: "iot".into(),
        verb: "up".into(),
        retry_of: None,
        targets: vec![],
        subject: None,
        spec_digest: "d".into(),
        banner: Some("k3s is a stand-in here".into()),
        steps,
    }
}

pub fn start(ms: u64, step: &str, attempt: u32) -> Event {
    event(ms, Kind::StepStarted { step: step.into(), attempt, attempts: 3 })
}

pub fn doing(ms: u64, step: &str, message: &str, bytes: Option<(u64, u64)>) -> Event {
    let (done, total) = (bytes.map(|b| b.0), bytes.map(|b| b.1));
    event(ms, Kind::StepProgress { step: step.into(), message: message.into(), done, total })
}

pub fn end(ms: u64, step: &str, outcome: Outcome, took_ms: u64) -> Event {
    event(ms, Kind::StepFinished { step: step.into(), outcome, attempt: 1, took_ms })
}

pub fn done(ms: u64, step: &str, took_ms: u64) -> Event {
    end(ms, step, Outcome::Done { detail: None }, took_ms)
}

/// Until 20 s: the server is ready, worker-1 copies, worker-2 waits for another attempt, worker-3 failed.
pub fn first_half() -> Vec<Event> {
    let size = 76_965_478;
    let failure = Failure {
        cause: "k3s-agent exited with status 1: the server refused the token".into(),
        hint: Some("The node's token differs from the server's. `p1 retry` writes it again.".into()),
        evidence: vec![
            "k3s[812]: level=error msg=\"token CA hash does not match\"".into(),
            "systemd[1]: k3s-agent.service: Main process exited, status=1/FAILURE".into(),
        ],
        log: Some(".p1/iot/logs/worker-3/start.log".into()),
        ..Failure::default()
    };
    let warning = "swap is on; the kubelet's memory limits are not kept".to_owned();
    let mut events = vec![
        event(0, began(plan())),
        start(10, "cluster/network", 1),
        start(12, "cluster/k3s", 1),
        doing(200, "cluster/k3s", "v1.34.1+k3s1", Some((0, size))),
        done(1200, "cluster/network", 1190),
        doing(3200, "cluster/k3s", "v1.34.1+k3s1", Some((30 << 20, size))),
        doing(6000, "cluster/k3s", "v1.34.1+k3s1", Some((60 << 20, size))),
        end(7000, "cluster/k3s", Outcome::Done { detail: Some("fetched 73.4 MiB".into()) }, 6988),
        start(7001, "server/stage", 1),
        done(9000, "server/stage", 1999),
        start(9001, "server/start", 1),
        doing(9100, "server/start", "waiting for the API", None),
        start(9500, "worker-3/stage", 1),
        end(9600, "worker-3/stage", Outcome::Skipped { reason: "the node has it".into() }, 100),
        done(13_000, "server/start", 3999),
        start(13_001, "worker-3/start", 1),
        start(13_002, "server/ready", 1),
        event(13_500, Kind::StepWarning { step: "worker-3/start".into(), message: warning }),
        doing(13_600, "worker-3/start", "waiting for the node to register", None),
        done(15_000, "server/ready", 1998),
        start(15_100, "worker-1/stage", 1),
        start(15_200, "worker-2/stage", 1),
    ];
    for second in 0..4 {
        let bytes = Some((second * (7 << 20), size));
        events.push(doing(15_500 + second * 1000, "worker-1/stage", "k3s", bytes));
    }
    let cause = "the connection was reset by 192.168.56.112".to_owned();
    let retry = Kind::StepRetrying {
        step: "worker-2/stage".into(),
        attempt: 1,
        attempts: 3,
        wait_ms: 4000,
        cause,
        kind: FailureKind::Lost,
    };
    events.push(event(18_700, retry));
    events.push(end(19_000, "worker-3/start", Outcome::Failed(failure), 5999));
    events.push(end(19_000, "worker-3/ready", Outcome::Blocked { by: "worker-3/start".into() }, 0));
    events
}

/// The user stops it.
pub fn run() -> Vec<Event> {
    let mut events = first_half();
    events.push(start(22_700, "worker-2/stage", 2));
    events.push(done(24_000, "worker-2/stage", 8800));
    events.push(end(25_000, "worker-1/stage", Outcome::Interrupted, 9900));
    for node in ["worker-1/start", "worker-1/ready", "cluster/kubeconfig"] {
        events.push(end(25_000, node, Outcome::Blocked { by: "worker-1/stage".into() }, 0));
    }
    events.push(event(25_010, Kind::RunFinished { success: false, interrupted: true }));
    events
}
