//! Steps of a longer command: a spinner on a terminal, one plain line per finished step elsewhere.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::paint::{Paint, Tone};
use super::talk;

/// The steps of one command and how long each took.
pub(crate) struct Progress {
    paint: Paint,
    live: bool,
    started: Instant,
    times: RefCell<Vec<(String, Duration)>>,
}

/// A step that is under way. Dropped without [`Step::done`], it shows as failed.
pub(crate) struct Step<'a> {
    progress: &'a Progress,
    name: &'static str,
    started: Instant,
    spinner: Option<ProgressBar>,
    finished: bool,
}

impl Progress {
    pub(super) fn new(paint: Paint, live: bool) -> Self {
        Self { paint, live, started: Instant::now(), times: RefCell::new(Vec::new()) }
    }

    /// Begins a step; `doing` is shown until it ends.
    pub(crate) fn begin(&self, name: &'static str, doing: &str) -> Step<'_> {
        let spinner = self.live.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(
                ProgressStyle::with_template(" {spinner} {prefix:12} {msg}")
                    .expect("the template is constant"),
            );
            bar.set_prefix(name);
            bar.set_message(doing.to_owned());
            bar.enable_steady_tick(Duration::from_millis(80));
            bar
        });
        Step { progress: self, name, started: Instant::now(), spinner, finished: false }
    }

    /// Time since the first step could begin.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Notes the time of a part of a step, for [`Self::timings`] only.
    pub(crate) fn note(&self, part: String, time: Duration) {
        self.times.borrow_mut().push((part, time));
    }

    /// What `--timings` prints: a line per step, and the whole.
    pub(crate) fn timings(&self) -> String {
        let mut text = String::new();
        for (name, time) in self.times.borrow().iter() {
            text.push_str(&format!("timing {name:24} {:>9}\n", milliseconds(*time)));
        }
        text.push_str(&format!("timing {:24} {:>9}", "total", milliseconds(self.elapsed())));
        text
    }

    fn line(&self, mark: &str, tone: Tone, name: &str, detail: &str, time: Duration) {
        talk(&format!(
            " {} {name:12} {detail}  {}\n",
            self.paint.tone(tone, mark),
            self.paint.tone(Tone::Quiet, &milliseconds(time)),
        ));
    }
}

impl Step<'_> {
    /// Says what is being waited for now.
    pub(crate) fn doing(&self, what: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.set_message(what.to_owned());
        }
    }

    /// A part of the step has ended; the step goes on.
    pub(crate) fn passed(&self, name: &str, detail: &str, time: Duration) {
        self.progress.note(name.to_owned(), time);
        self.aside(|| self.progress.line("✓", Tone::Good, name, detail, time));
    }

    /// Prints beside the spinner.
    pub(crate) fn aside(&self, print: impl FnOnce()) {
        match &self.spinner {
            Some(spinner) => spinner.suspend(print),
            None => print(),
        }
    }

    /// The step ended, and what it did is told otherwise.
    pub(crate) fn vanish(mut self) {
        self.finished = true;
        self.clear();
    }

    /// The step succeeded; `detail` is what there is now.
    pub(crate) fn done(self, detail: &str) {
        self.finish("✓", Tone::Good, detail);
    }

    fn finish(mut self, mark: &str, tone: Tone, detail: &str) {
        self.finished = true;
        self.clear();
        let time = self.started.elapsed();
        self.progress.times.borrow_mut().push((self.name.to_owned(), time));
        self.progress.line(mark, tone, self.name, detail, time);
    }

    fn clear(&self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.clear();
            self.progress.line("✗", Tone::Bad, self.name, "", self.started.elapsed());
        }
    }
}

/// Milliseconds, or seconds from ten of them on, with as many digits as are worth reading.
pub(crate) fn milliseconds(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    match ms {
        ..10.0 => format!("{ms:.1} ms"),
        ..10_000.0 => format!("{ms:.0} ms"),
        _ => format!("{:.1} s", ms / 1e3),
    }
}
