//! Long work on a node that a lost connection cannot hurt.
//!
//! A job runs as a unit of its own (`systemd-run`), or in a session of its own where systemd is
//! not the init. Its files are in `/run/p1/NAME/` (0700, root): `id`, `work` (the script), `env`
//! (secrets; removed when read), `lock` (held while it lives), `pid`, `out` and, in the end, `rc`. Whoever comes with the same
//! id, after a lost connection or as a later p1, follows the job there is instead of starting
//! another; when its result has been taken, the directory is removed.

use std::time::{Duration, Instant};

use super::output::tail;
use super::script::{whole, whole_seconds};
use super::session::Task;
use super::upload::nonce;
use super::{Bound, Error, Output, Remote, Session};
use crate::explain::Explain;
use crate::os::lines::Lines;
use crate::os::process::quote;

/// How long one request follows a job before it answers: the heartbeat by which a frozen node is noticed.
const WINDOW: u64 = 10;
/// What a job that is told to end is given until it is killed, in seconds.
const GRACE: u64 = 5;
/// What a job is given beyond its bound to end and to leave its result.
const SLACK: Duration = Duration::from_secs(GRACE + 2);
/// What a job may say within one request.
const MAX_BYTES: u64 = 256 << 20;
/// Of a job's output, so many of the last bytes are kept for the result.
const KEEP: usize = 1 << 20;

/// A job for [`Remote::detached`].
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// A DNS label that names the job on the node, and its unit `p1-NAME`; one at a time of a name.
    pub name: &'a str,
    /// What makes it this job and no other: a digest of its inputs, and of the run it belongs to. A
    /// job of the same name and another id that still runs is ended.
    pub id: &'a str,
    /// What `sh` runs as root.
    pub script: &'a str,
    /// Variables of its environment, which may be secrets.
    pub env: &'a [(&'a str, &'a str)],
}

impl Job<'_> {
    fn check(&self) -> Result<(), Error> {
        let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.name.is_empty() || !self.name.chars().all(label) {
            return Err(Error::Invalid { what: "the job name", value: self.name.to_owned() });
        }
        let variable = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        match self.env.iter().find(|(name, _)| !variable(name)) {
            Some((name, _)) => Err(Error::Invalid { what: "the variable", value: (*name).to_owned() }),
            None => Ok(()),
        }
    }

    /// The part that starts the job unless it is there.
    fn start(&self, bound: Duration) -> String {
        let env: String = self.env.iter().map(|(k, v)| format!("export {k}={}\n", quote(v))).collect();
        let run = format!(
            "cd {dir}\nexec 9>lock\nflock 9\necho $$ >pid.new && mv pid.new pid\n. ./env\nrm -f env\ncd /\n\
             timeout -k {GRACE} {bound} /bin/sh {dir}/work >{dir}/out 2>&1 </dev/null 9>&- &\n\
             job=$!\ntrap \"kill $job 2>/dev/null\" TERM\nwait $job\nrc=$?\n\
             # A signal ends the wait, not the job; the lock is let go when it has ended.\n\
             while kill -0 $job 2>/dev/null; do wait $job; rc=$?; done\n\
             echo $rc >{dir}/rc.new && mv {dir}/rc.new {dir}/rc\n",
            dir = self.dir(),
            bound = whole_seconds(bound),
        );
        format!(
            "if [ -e $d/id ] && [ \"$(cat $d/id)\" != {id} ]; then\n\
             alive && kill \"$(cat $d/pid)\"\n\
             i=0; while alive && [ $i -lt 75 ]; do sleep 0.2; i=$((i+1)); done\n\
             rm -rf $d\nfi\n\
             if [ ! -e $d/id ]; then\n\
             rm -rf $d; mkdir -p $d || exit 95\n: >$d/out\n{env}{work}{run}\
             printf '%s\\n' {id} >$d/id || exit 95\n\
             if [ -d /run/systemd/system ] && command -v systemd-run >/dev/null; then\n\
             # The unit of a job that has just ended may not be gone yet.\n\
             i=0; until said=$(systemd-run --quiet --collect --unit=p1-{name} /bin/sh $d/run 2>&1); do\n\
             i=$((i+1)); [ $i -lt 20 ] || {{ rm -rf $d; echo \"$said\"; exit 95; }}; sleep 0.2; done\n\
             else (setsid /bin/sh $d/run </dev/null >/dev/null 2>&1 &) fi\n\
             i=0; while [ ! -e $d/pid ] && [ $i -lt 100 ]; do sleep 0.05; i=$((i+1)); done\n\
             fi\n",
            id = quote(self.id),
            name = self.name,
            env = here("env", &env),
            work = here("work", self.script),
            run = here("run", &run),
        )
    }

    /// The whole request: output from byte `from` on, as it comes, then `mark`, the state (`run`,
    /// `gone`, or an exit status) and the size of `out`.
    fn request(&self, from: u64, start: Option<Duration>, mark: &str) -> String {
        format!(
            "umask 077\nd={dir}\nalive() {{ [ -e $d/lock ] && ! flock -n -s $d/lock true; }}\n\
             {start}\
             # From here on the output is the job's alone.\n\
             exec 2>/dev/null\n\
             if [ ! -e $d/rc ] && alive; then\n\
             tail -c +{next} -f -s 0.1 $d/out & t=$!\n\
             # The job holds the lock while it lives; after it, tail has a moment for the last lines.\n\
             flock -w {WINDOW} -s $d/lock sleep 0.1\nkill $t\nwait $t\n\
             elif [ -e $d/out ]; then tail -c +{next} $d/out; fi\n\
             state=gone; if [ -e $d/rc ]; then state=$(cat $d/rc); elif alive; then state=run\n\
             elif [ -e $d/rc ]; then state=$(cat $d/rc); fi\n\
             printf '%s' '{mark}' \"$state $(stat -c %s $d/out 2>/dev/null)\"\n",
            dir = self.dir(),
            next = from + 1,
            start = start.map_or_else(String::new, |bound| self.start(bound)),
        )
    }

    fn dir(&self) -> String {
        format!("/run/p1/{}", self.name)
    }
}

/// Shell text that writes `text` to the file `name` of the job.
fn here(name: &str, text: &str) -> String {
    let mark = format!("P1_{}", nonce());
    format!("cat >$d/{name} <<'{mark}' || exit 95\n{text}\n{mark}\n")
}

/// What a request learned.
enum JobStatus {
    Running,
    Gone,
    Done(i32),
}

impl Session {
    /// One request. All output but the trailer goes to `on_output`.
    fn follow(
        &mut self,
        job: &Job<'_>,
        from: u64,
        start: Option<Duration>,
        left: Duration,
        on_output: &mut dyn FnMut(&[u8]),
    ) -> Result<(JobStatus, u64), Error> {
        // Nothing that a job writes by chance; it is held back only from where this begins.
        let mark = format!("\x1ep1-{}:", nonce());
        let text = whole(&job.request(from, start, &mark));
        let mut held: Vec<u8> = Vec::new();
        let silence = (Duration::from_secs(WINDOW) + self.answer).min(left);
        let output = self.run(Task {
            what: job.name,
            command: "sh -s",
            root: true,
            input: &mut text.as_bytes(),
            bound: Bound::new(left, silence).at_most(MAX_BYTES),
            on_output: &mut |bytes| {
                held.extend_from_slice(bytes);
                let ready = before(&held, mark.as_bytes());
                if ready > 0 {
                    on_output(&held[..ready]);
                    held.drain(..ready);
                }
            },
            on_sent: &mut |_| {},
        })?;
        let output = self.check_sudo(true, output)?.ok()?;
        let trailer = String::from_utf8_lossy(&held);
        let mut words = trailer.strip_prefix(&mark).unwrap_or_default().split_whitespace();
        let (state, size) = (words.next().unwrap_or_default(), words.next());
        let size = size.and_then(|s| s.parse().ok()).unwrap_or(0);
        let state = match (state, state.parse()) {
            ("run", _) => JobStatus::Running,
            (_, Ok(status)) => JobStatus::Done(status),
            ("gone", _) => JobStatus::Gone,
            _ => {
                let (node, what) = (output.node, format!("following {}", job.name));
                return Err(Error::Lost { node, what, reason: "the answer is cut".into(), started: true });
            }
        };
        Ok((state, size))
    }

    fn forget(&mut self, job: &Job<'_>) -> Result<(), Error> {
        let script = format!("rm -rf {}", job.dir());
        let bound = self.answer;
        self.script("taking a job's result", &script, true, bound, &mut |_| {})?.ok().map(drop)
    }
}

impl Remote {
    /// Runs a job on the node, or follows the one of this id that is there, to its end. Survives
    /// lost connections; an abort leaves the job running, to be followed by the next call.
    /// `bound` is counted from its start on the node, where `timeout` ends it.
    ///
    /// Each line is handed over once it is whole, and once each time the job is followed from the beginning
    /// (so a later p1 sees all of it).
    ///
    /// # Errors
    /// As [`Session::script`]; [`Error::Deadline`] if it was ended for its time; [`Error::JobLost`] if
    /// it ended without a result; an error of the connection if the node does not come back.
    pub fn detached(
        &mut self,
        job: &Job<'_>,
        bound: Duration,
        on_line: &mut dyn FnMut(&str),
    ) -> Result<Output, Error> {
        let mut lines = Lines::default();
        let done = self.follow_to_its_end(job, bound, &mut |bytes| lines.push(bytes, on_line));
        lines.finish(on_line);
        done
    }

    fn follow_to_its_end(
        &mut self,
        job: &Job<'_>,
        bound: Duration,
        on_output: &mut dyn FnMut(&[u8]),
    ) -> Result<Output, Error> {
        job.check()?;
        let start = Instant::now();
        let (mut known, mut from, mut kept) = (false, 0, Vec::new());
        let (node, what) = (self.endpoint().node.clone(), job.name.to_owned());
        let status = loop {
            let left = (bound + SLACK).saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(Error::Deadline { node, what, bound, tail: tail(&kept) });
            }
            let have = from;
            let mut take = |bytes: &[u8]| {
                from += bytes.len() as u64;
                keep(&mut kept, bytes);
                on_output(bytes);
            };
            // What has said something was started; if it is gone, so is the node's memory of it.
            let begin = (!known && have == 0).then_some(bound);
            let answer = self.session().and_then(|s| s.follow(job, have, begin, left, &mut take));
            match answer {
                Ok((JobStatus::Gone, _)) => {
                    let _ = self.session().and_then(|s| s.forget(job));
                    return Err(Error::JobLost { node, job: what, tail: tail(&kept) });
                }
                Ok((JobStatus::Done(status), size)) if from >= size => break status,
                Ok(_) => known = true,
                // Its time is over, whatever the node would say.
                Err(Error::Deadline { .. } | Error::Silent { .. }) if start.elapsed() >= bound + SLACK => {}
                Err(error) if error.connection() => {
                    self.wait_for((bound + SLACK).saturating_sub(start.elapsed()), &mut |_| {})?;
                }
                Err(error) => return Err(error),
            }
        };
        // Its result is here; what is left there must not be taken for another job's.
        if let Err(error) = self.again(|session| session.forget(job))
            && error.cancelled()
        {
            return Err(error);
        }
        if matches!(status, 124 | 137) && start.elapsed() >= bound {
            return Err(Error::Deadline { node, what, bound, tail: tail(&kept) });
        }
        Ok(Output { node, what, status, output: kept })
    }
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    kept.extend_from_slice(bytes);
    if kept.len() > 2 * KEEP {
        kept.drain(..kept.len() - KEEP);
    }
}

/// How much of `bytes` lies before `mark`, or before what may become one.
fn before(bytes: &[u8], mark: &[u8]) -> usize {
    let begins = |at: &usize| mark.starts_with(&bytes[*at..]) || bytes[*at..].starts_with(mark);
    let possible = (0..bytes.len()).filter(|at| bytes[*at] == mark[0]);
    possible.into_iter().find(begins).unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_mark_is_held_back() {
        let cases: [(&[u8], usize); 5] =
            [(b"text", 4), (b"te<", 2), (b"te<x", 4), (b"<<ma", 1), (b"a<mark>b<", 1)];
        for (bytes, ready) in cases {
            assert_eq!(before(bytes, b"<mark>"), ready, "{}", String::from_utf8_lossy(bytes));
        }
    }
}
