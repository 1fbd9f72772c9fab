//! One scripted run, a server and three workers, seen by every renderer; and runs that make no sense.

mod script;

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use script::{began, doing, done, event, first_half, info, run, start};

use super::board::Doing;
use super::rows::{Look, rows};
use super::*;
use crate::event::{Failure, Kind, Outcome, StepInfo};
use crate::explain::FailureKind;

const PAINT: Paint = Paint { color: false, unicode: true };

fn options(format: Format) -> Options {
    Options { format, color: false, unicode: true, width: Some(100), verbose: 0, terminal: false }
}

/// A writer whose text can be read by its clones.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a renderer writes for programs and for people, ticking after every event.
fn shown(options: Options, events: &[Event]) -> (String, String) {
    let (mut renderer, data, talk) = shown_until_finish(options, events);
    renderer.finish();
    (data.text(), talk.text())
}

/// As [`shown`], with the renderer still at work.
fn shown_until_finish(options: Options, events: &[Event]) -> (Box<dyn Renderer>, Sink, Sink) {
    let (data, talk) = (Sink::default(), Sink::default());
    let mut renderer = renderer(&options, Box::new(data.clone()), Box::new(talk.clone()));
    let mut board = Board::default();
    for event in events {
        board.apply(event);
        renderer.event(event, &board);
        renderer.tick(&board, board.latest);
    }
    (renderer, data, talk)
}

fn frame(board: &Board, ms: u64, width: usize, paint: Paint) -> String {
    rows(board, Duration::from_millis(ms), Look { width, height: 24, paint }).join("\n")
}

#[test]
fn the_live_screen_says_what_every_node_does() {
    let board = Board::of(&first_half());
    insta::assert_snapshot!("live_100", frame(&board, 19_500, 99, PAINT));
    insta::assert_snapshot!("live_60", frame(&board, 19_500, 59, PAINT));
    insta::assert_snapshot!("live_ascii", frame(&board, 19_500, 79, Paint { unicode: false, ..PAINT }));
    insta::assert_snapshot!("live_colour", frame(&board, 19_500, 79, Paint { color: true, ..PAINT }));
    let early = Board::of(&first_half()[..6]);
    insta::assert_snapshot!("live_early", frame(&early, 3300, 99, PAINT));
}

#[test]
fn plain_lines_keep_their_columns() {
    let (data, talk) = shown(options(Format::Human), &run());
    insta::assert_snapshot!("plain", talk);
    assert_eq!(data, "");
}

#[test]
fn json_is_the_events_themselves_without_repetitions() {
    let events = run();
    let (data, talk) = shown(options(Format::Json), &events);
    assert_eq!(talk, "");
    let read: Vec<Event> = data.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(read, events, "progress a second apart is passed on");
    let close =
        [doing(1, "a/b", "m", Some((1, 9))), doing(2, "a/b", "m", Some((2, 9))), doing(3, "a/b", "n", None)];
    assert_eq!(shown(options(Format::Json), &close).0.lines().count(), 2);
    assert_eq!(closing(&Board::of(&events), &options(Format::Json), "p1"), "");
}

#[test]
fn the_end_is_told_with_times_and_with_what_to_do() {
    let board = Board::of(&run());
    insta::assert_snapshot!("closing", closing(&board, &options(Format::Human), "p1 -f iot.yaml"));
    let narrow = Options { width: Some(56), terminal: true, ..options(Format::Human) };
    insta::assert_snapshot!("closing_narrow", closing(&board, &narrow, "p1 -f iot.yaml"));
}

#[test]
fn a_run_that_succeeded_says_so_in_a_line_and_one_without_work_in_that_line_alone() {
    let mut events = vec![event(0, began(vec![info("server/start", "start k3s", &[])]))];
    events.extend([start(5, "server/start", 1), done(2005, "server/start", 2000)]);
    events.push(event(2400, Kind::RunFinished { success: true, interrupted: false }));
    let text = |events: &[Event]| {
        let mut board = Board::of(events);
        board.now = vec!["k3s v1.35.0+k3s1 on 1 node; the API is https://192.168.56.110:6443".into()];
        board.next = Some("p1 kubectl get pods -A".into());
        closing(&board, &options(Format::Human), "p1 -C iot")
    };
    insta::assert_snapshot!(text(&events), @r"

    ! k3s is a stand-in here
    ✓ cluster `iot` is up: 1 node in 2.4s

            start  total
    server   2.0s   2.0s
    1 step: 1 done

    k3s v1.35.0+k3s1 on 1 node; the API is https://192.168.56.110:6443
    next: p1 -C iot kubectl get pods -A
    ");
    let idle = [StepInfo { needed: false, ..info("server/start", "start k3s", &[]) }];
    let events =
        [event(0, began(idle.into())), event(400, Kind::RunFinished { success: true, interrupted: false })];
    insta::assert_snapshot!(text(&events), @r"

    ! k3s is a stand-in here
    ✓ nothing to do: cluster `iot` is as the spec says (0.4s)
    ");
}

#[test]
fn the_board_knows_what_waits_for_what() {
    let board = Board::of(&first_half());
    let lane = |name: &str| board.lanes.iter().find(|lane| lane.node.as_deref() == Some(name)).unwrap();
    assert!(matches!(board.doing(lane("server")), Doing::Finished));
    assert!(matches!(board.doing(lane("worker-3")), Doing::Failed(step) if step.phase() == "start"));
    let Doing::Waiting(next, Some(before)) = board.doing(&board.lanes[0]) else { panic!() };
    assert_eq!((next.phase(), before.info.id.as_str()), ("kubeconfig", "worker-1/ready"));
    let counts = board.counts();
    assert_eq!((counts.total, counts.passed(), counts.failed, counts.blocked), (15, 6, 1, 1));
    assert_eq!(board.span(lane("server")), Some(Duration::from_millis(7999)));
}

#[test]
fn more_nodes_than_rows_share_one_and_the_busy_come_first() {
    let plan = (1..=12).map(|n| info(&format!("worker-{n}/vm"), "boot the VM", &[])).collect();
    let mut events = vec![event(0, began(plan)), start(1, "worker-12/vm", 1)];
    events.extend([start(1, "worker-1/vm", 1), done(9, "worker-1/vm", 8)]);
    let board = Board::of(&events);
    let frame = frame(&board, 500, 60, PAINT);
    assert_eq!(frame.lines().count(), 10, "{frame}");
    assert!(frame.contains("worker-12  ⠴ boot the VM"), "{frame}");
    assert!(frame.ends_with("+4 more: 3 waiting, 1 done"), "{frame}");
    let low = Look { width: 60, height: 5, paint: PAINT };
    assert_eq!(rows(&board, Duration::ZERO, low).len(), 5);
}

/// Just enough of a terminal to see what a stream of bytes leaves on it.
fn terminal(bytes: &str) -> String {
    let (mut lines, mut row, mut column) = (vec![Vec::new()], 0_usize, 0_usize);
    let mut chars = bytes.chars();
    while let Some(c) = chars.next() {
        match c {
            '\r' => column = 0,
            '\n' => row += 1,
            '\x1b' => {
                assert_eq!(chars.next(), Some('['));
                let mut code = String::new();
                let order = loop {
                    match chars.next().unwrap() {
                        c if c.is_ascii_alphabetic() => break c,
                        c => code.push(c),
                    }
                };
                match order {
                    // Terminals take 0 for 1.
                    'A' => row = row.checked_sub(code.parse::<usize>().unwrap().max(1)).unwrap(),
                    'B' => row += code.parse::<usize>().unwrap().max(1),
                    'K' if code == "2" => lines[row] = Vec::new(),
                    'K' => lines[row].truncate(column),
                    other => panic!("{other}"),
                }
            }
            c => {
                let line: &mut Vec<char> = &mut lines[row];
                line.resize(line.len().max(column + 1), ' ');
                line[column] = c;
                column += 1;
            }
        }
        lines.resize(lines.len().max(row + 1), Vec::new());
    }
    let lines: Vec<String> = lines.into_iter().map(|line| line.into_iter().collect()).collect();
    lines.join("\n").trim_end().to_owned()
}

#[test]
fn the_live_screen_leaves_warnings_and_failures_and_nothing_else() {
    let options = Options { terminal: true, ..options(Format::Human) };
    let (data, talk) = shown(options, &run());
    assert_eq!(data, "");
    insta::assert_snapshot!(terminal(&talk), @r"
    ! k3s is a stand-in here
    ! worker-3  start k3s: swap is on; the kubelet's memory limits are not kept
    ✗ worker-3  start k3s: k3s-agent exited with status 1: the server refused the token
    ");
    // Before its rows are cleared they are below what stays.
    let (_running, _, talk) = shown_until_finish(options, &first_half());
    insta::assert_snapshot!("terminal", terminal(&talk.text()));
}

#[test]
fn what_is_said_before_the_run_stays_above_it() {
    let options = Options { terminal: true, ..options(Format::Human) };
    let talk = Sink::default();
    let mut renderer = renderer(&options, Box::new(io::sink()), Box::new(talk.clone()));
    renderer.note("heard");
    let mut board = Board::default();
    renderer.tick(&board, Duration::ZERO);
    board.apply(&event(0, began(vec![info("server/start", "start k3s", &[])])));
    renderer.tick(&board, Duration::ZERO);
    let text = terminal(&talk.text());
    assert!(text.starts_with("■ heard\nup iot") && text.ends_with("\nserver  · next: start k3s"), "{text}");
    renderer.finish();
    assert_eq!(terminal(&talk.text()), "■ heard");
}

#[test]
fn every_event_but_progress_arrives_in_order_and_a_closed_pipe_ends_quietly() {
    let sink = Sink::default();
    let handle = super::start(options(Format::Json), Box::new(sink.clone()), Box::new(io::sink()));
    let mut sent = Vec::new();
    for n in 0..3000 {
        let kind = Kind::StepStarted { step: format!("n/{n}"), attempt: 1, attempts: 1 };
        sent.push(event(n, kind));
        handle.sender().event(sent[n as usize].clone());
        handle.sender().event(doing(n, "n/progress", "m", None));
    }
    let board = handle.finish();
    assert!(board.steps.len() >= 3000);
    let read = sink.text();
    let read = read.lines().map(|line| serde_json::from_str::<Event>(line).unwrap());
    let read: Vec<_> = read.filter(|event| !matches!(event.kind, Kind::StepProgress { .. })).collect();
    assert_eq!(read, sent);

    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let handle = super::start(options(Format::Json), Box::new(Closed), Box::new(Closed));
    run().into_iter().for_each(|event| handle.sender().event(event));
    handle.sender().note("heard");
    assert!(handle.finish().end.is_some());
}

fn any_kind() -> impl Strategy<Value = Kind> {
    let id = || prop_oneof![4 => "(a|b|cluster)/(vm|start)", 1 => "\\PC{0,12}", 1 => any::<String>()];
    let text = || prop_oneof!["[a-z ]{0,200}", any::<String>(), "(日|é|👩‍🚀|\u{1b}\\[2J|\t|\n){0,60}"];
    let outcome = prop_oneof![
        text().prop_map(|detail| Outcome::Done { detail: Some(detail) }),
        text().prop_map(|reason| Outcome::Skipped { reason }),
        (text(), text()).prop_map(|(cause, hint)| {
            Outcome::Failed(Failure {
                evidence: vec![hint.clone()],
                hint: Some(hint),
                cause,
                ..Failure::default()
            })
        }),
        Just(Outcome::Interrupted),
        id().prop_map(|by| Outcome::Blocked { by }),
    ];
    let step = (id(), text(), proptest::collection::vec(id(), 0..3), any::<bool>());
    let step = step.prop_map(|(id, title, after, needed)| {
        let node = id.split_once('/').filter(|(node, _)| *node != "cluster").map(|(node, _)| node.to_owned());
        StepInfo { node, id, title, digest: String::new(), after, reason: String::new(), needed }
    });
    prop_oneof![
        proptest::collection::vec(step, 0..20).prop_map(began),
        (id(), any::<u32>(), any::<u32>()).prop_map(|(step, attempt, attempts)| Kind::StepStarted {
            step,
            attempt,
            attempts
        }),
        (id(), text(), any::<Option<u64>>(), any::<Option<u64>>())
            .prop_map(|(step, message, done, total)| Kind::StepProgress { step, message, done, total }),
        (id(), text()).prop_map(|(step, message)| Kind::StepWarning { step, message }),
        (id(), any::<u32>(), any::<u32>(), any::<u64>(), text()).prop_map(
            |(step, attempt, attempts, wait_ms, cause)| {
                Kind::StepRetrying { step, attempt, attempts, wait_ms, cause, kind: FailureKind::Lost }
            }
        ),
        (id(), outcome, any::<u32>(), any::<u64>()).prop_map(|(step, outcome, attempt, took_ms)| {
            Kind::StepFinished { step, outcome, attempt, took_ms }
        }),
        any::<(bool, bool)>().prop_map(|(success, interrupted)| Kind::RunFinished { success, interrupted }),
        Just(Kind::Unknown),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_events_in_any_order_are_shown_within_the_screen(
        kinds in proptest::collection::vec((any_kind(), prop_oneof![0..100_000u64, any::<u64>()]), 0..40),
        width in 0..140usize, height in 0..30usize, unicode: bool, now: u64,
    ) {
        let events: Vec<_> = kinds.into_iter().map(|(kind, at)| event(at, kind)).collect();
        let board = Board::of(&events);
        let paint = Paint { color: false, unicode };
        for now in [Duration::from_millis(now), board.latest] {
            let rows = rows(&board, now, Look { width, height, paint });
            prop_assert!(rows.len() <= height.max(1));
            for row in rows {
                prop_assert!(text::width(&row) <= width && !row.contains(char::is_control), "{row:?}");
            }
        }
        for format in [Format::Plain, Format::Json] {
            shown(Options { verbose: 1, ..options(format) }, &events);
        }
        let width = Some(width as u16);
        closing(&board, &Options { width, terminal: true, ..options(Format::Human) }, "p1");
        let (_, live) = shown(Options { terminal: true, ..options(Format::Human) }, &events);
        prop_assert!(!live.contains("\u{1b}[2J"), "an escape sequence of a message got through");
    }
}
