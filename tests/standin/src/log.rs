//! Lines in logrus' text format, which is what `journalctl -u k3s` shows of the real program.

use crate::util;

pub fn line(level: &str, message: &str) {
    let quoted = message.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    eprintln!("time=\"{}\" level={level} msg=\"{quoted}\"", util::now());
}

pub fn info(message: impl AsRef<str>) {
    line("info", message.as_ref());
}

pub fn warn(message: impl AsRef<str>) {
    line("warning", message.as_ref());
}

pub fn error(message: impl AsRef<str>) {
    line("error", message.as_ref());
}

/// Ends the process, as logrus' `Fatal` does, with status 1.
pub fn fatal(message: impl AsRef<str>) -> ! {
    line("fatal", message.as_ref());
    std::process::exit(1)
}
