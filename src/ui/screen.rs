//! The one thread that shows a run: it takes events in order, keeps the board, and gives the time.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::board::Board;
use super::{Options, Renderer, renderer};
use crate::event::{Event, Kind};

/// More than this waiting to be shown, and progress is dropped: somebody has stopped the terminal.
const WAITING: usize = 1000;

enum Message {
    Event(Box<Event>),
    Note(String),
    Finish,
}

/// Where events go in; cheap to clone, usable from any thread. Never blocks.
#[derive(Clone, Debug)]
pub struct Sender {
    to: mpsc::Sender<Message>,
    waiting: Arc<AtomicUsize>,
}

impl Sender {
    /// Shows an event. Events are shown in the order in which they are given; progress may be dropped.
    pub fn event(&self, event: Event) {
        let progress = matches!(event.kind, Kind::StepProgress { .. });
        if !progress || self.waiting.load(Ordering::Relaxed) < WAITING {
            self.send(Message::Event(Box::new(event)));
        }
    }

    /// Says something that is no event, such as that a signal was heard.
    pub fn note(&self, text: &str) {
        self.send(Message::Note(text.to_owned()));
    }

    fn send(&self, message: Message) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // The thread ends before its senders only after `finish`; what comes then is not for the screen.
        let _ = self.to.send(message);
    }
}

/// The running thread. Dropping it ends the show as [`Handle::finish`] does.
#[derive(Debug)]
pub struct Handle {
    sender: Sender,
    thread: Option<JoinHandle<Board>>,
}

impl Handle {
    /// Where events go in.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// Shows what was sent until now, clears what is not to stay, and returns what is known of the run.
    pub fn finish(mut self) -> Board {
        self.end()
    }

    fn end(&mut self) -> Board {
        self.sender.send(Message::Finish);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end();
        }
    }
}

/// Starts to show a run; see [`renderer`] for the two writers.
pub fn start(options: Options, data: Box<dyn Write + Send>, talk: Box<dyn Write + Send>) -> Handle {
    let (to, from) = mpsc::channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    let sender = Sender { to, waiting: Arc::clone(&waiting) };
    let thread = std::thread::spawn(move || {
        let renderer = renderer(&options, data, talk);
        Show { renderer, board: Board::default(), began: None }.run(&from, &waiting)
    });
    Handle { sender, thread: Some(thread) }
}

struct Show {
    renderer: Box<dyn Renderer>,
    board: Board,
    /// When the run began, told by the clock of this process.
    began: Option<Instant>,
}

impl Show {
    fn run(mut self, from: &Receiver<Message>, waiting: &AtomicUsize) -> Board {
        let interval = self.renderer.interval();
        let mut next = Instant::now() + interval;
        loop {
            let left = next.saturating_duration_since(Instant::now());
            match from.recv_timeout(left) {
                Ok(message) => {
                    waiting.fetch_sub(1, Ordering::Relaxed);
                    match message {
                        Message::Event(event) => self.event(&event),
                        Message::Note(text) => self.renderer.note(&text),
                        Message::Finish => break,
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let now = Instant::now();
            if now >= next {
                self.tick();
                next = now + interval;
            }
        }
        self.renderer.finish();
        self.board
    }

    fn event(&mut self, event: &Event) {
        let elapsed = Duration::from_millis(event.elapsed_ms);
        let began = Instant::now().checked_sub(elapsed);
        let fresh = matches!(event.kind, Kind::RunStarted { .. });
        if fresh || self.began.is_none() {
            self.began = began;
        }
        self.board.apply(event);
        self.renderer.event(event, &self.board);
    }

    fn tick(&mut self) {
        let since = self.began.map(|began| began.elapsed()).unwrap_or_default();
        self.renderer.tick(&self.board, since.max(self.board.latest));
    }
}
