//! The terminal that indicatif draws on: it collects a frame, to be shown in one write.
//!
//! It also pretends to be so wide that no row fills it. indicatif ends a row by filling it with spaces up
//! to the width of the terminal (draw_target.rs, `draw_to_term`), which makes all rows one paragraph that
//! terminals break again when their size changes. Here a row ends with a newline.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use indicatif::TermLike;

use crate::os::sync;

/// Far wider than any row; a run of spaces of at least half of it is what follows a row.
const WIDE: u16 = 4096;

/// See the module. Clones write to the same frame.
#[derive(Clone, Debug, Default)]
pub struct Frame(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    text: String,
    /// A row has ended, and a newline is due when another begins.
    ended: bool,
}

impl Frame {
    fn held(&self) -> MutexGuard<'_, Held> {
        sync::lock(&self.0)
    }

    /// What was drawn since the last time.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.held().text).into_bytes()
    }

    /// Writes a whole line that stays.
    pub fn line(&self, line: &str) {
        let mut held = self.held();
        held.text.extend([line, "\x1b[K\r\n"]);
        held.ended = false;
    }

    /// Clears so many lines of the terminal, at whose end the cursor is, and goes to where the end of so
    /// many rows would be.
    pub fn wipe(&self, lines: usize, rows: usize) {
        self.go(lines.saturating_sub(1), 'A');
        let mut held = self.held();
        held.text.push_str("\r\x1b[J");
        held.text.extend(std::iter::repeat_n('\n', rows.saturating_sub(1)));
    }

    fn go(&self, n: usize, way: char) {
        let mut held = self.held();
        held.ended = false;
        // Terminals take 0 for 1.
        if n > 0 {
            held.text.push_str(&format!("\x1b[{n}{way}"));
        }
    }
}

impl TermLike for Frame {
    fn width(&self) -> u16 {
        WIDE
    }

    fn height(&self) -> u16 {
        u16::MAX // The rows are made for the height.
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.go(n, 'A');
        Ok(())
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.go(n, 'B');
        Ok(())
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.go(n, 'C');
        Ok(())
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.go(n, 'D');
        Ok(())
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.line(text);
        Ok(())
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        let mut held = self.held();
        if text.len() >= usize::from(WIDE / 2) && text.bytes().all(|b| b == b' ') {
            held.text.push_str("\x1b[K");
            held.ended = true;
            return Ok(());
        }
        if std::mem::take(&mut held.ended) {
            held.text.push_str("\r\n");
        }
        held.text.push_str(text);
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        let mut held = self.held();
        held.ended = false;
        held.text.push_str("\r\x1b[2K");
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(()) // See `take`.
    }
}
