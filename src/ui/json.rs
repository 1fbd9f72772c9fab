//! The events as they are, one JSON object a line, for programs.

use std::collections::HashMap;
use std::time::Duration;

use super::board::Board;
use super::{Out, Renderer};
use crate::event::{Event, Kind};

/// Progress with an unchanged message is passed on this often.
const APART: Duration = Duration::from_secs(1);

/// See the module.
pub struct Json {
    data: Out,
    talk: Out,
    progress: HashMap<String, (String, Duration)>,
}

impl Json {
    /// Events go to `data`; what is said to a person goes to `talk`.
    pub fn new(data: Out, talk: Out) -> Self {
        Self { data, talk, progress: HashMap::new() }
    }

    /// Whether a report of progress comes too soon after one that says the same.
    fn noise(&mut self, event: &Event) -> bool {
        let Kind::StepProgress { step, message, .. } = &event.kind else { return false };
        let now = Duration::from_millis(event.elapsed_ms);
        if let Some((said, then)) = self.progress.get(step)
            && said == message
            && now.saturating_sub(*then) < APART
        {
            return true;
        }
        self.progress.insert(step.clone(), (message.clone(), now));
        false
    }
}

impl Renderer for Json {
    fn event(&mut self, event: &Event, _: &Board) {
        if self.noise(event) {
            return;
        }
        // An event is made of strings and numbers, so that it cannot fail to be written as JSON.
        if let Ok(mut line) = serde_json::to_vec(event) {
            line.push(b'\n');
            self.data.write(&line);
        }
    }

    fn note(&mut self, text: &str) {
        self.talk.write(format!("{text}\n").as_bytes());
    }
}
