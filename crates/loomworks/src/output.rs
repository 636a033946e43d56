//! What people and scripts see: tables, JSON, progress, errors.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use serde::Serialize;

/// Why a command did not do what it was told.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    pub(crate) exit: u8,
}

impl Failure {
    /// It was tried and did not work.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { code: "failed".into(), message: message.into(), hint: None, exit: 1 }
    }

    /// What was asked for is not possible. Exit status 2, as for a wrong command line.
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self { exit: 2, code: "refused".into(), ..Self::new(message) }
    }

    pub(crate) fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    pub(crate) fn with_code(self, code: impl Into<String>) -> Self {
        Self { code: code.into(), ..self }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error: anyhow::Error = error.into();
        Self::new(format!("{error:#}"))
    }
}

/// Says on standard error what went wrong and what can be done about it.
pub(crate) fn report(failure: &Failure, json: bool) {
    let mut stderr = std::io::stderr().lock();
    // Nothing can be done if this cannot be written.
    let _ = if json {
        let value = serde_json::json!({
            "error": { "code": failure.code, "message": failure.message, "hint": failure.hint }
        });
        writeln!(stderr, "{value}")
    } else {
        let hint = failure.hint.as_ref().map_or(String::new(), |hint| format!("\nhint: {hint}"));
        writeln!(stderr, "error: {}{hint}", failure.message)
    };
}

/// Prints a line, and ends quietly when nobody reads any more (`loomworks … | head`).
pub(crate) fn line(text: impl AsRef<str>) {
    if writeln!(std::io::stdout().lock(), "{}", text.as_ref()).is_err() {
        std::process::exit(0);
    }
}

/// Prints a line as the whole answer of a command.
pub(crate) fn told(text: impl AsRef<str>) -> Result<(), Failure> {
    line(text);
    Ok(())
}

pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    line(serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Says how to see what follows on a page, where that does not get into what is printed.
pub(crate) fn more(next_cursor: Option<&str>) {
    if let Some(cursor) = next_cursor {
        // Nothing can be done if this cannot be written.
        let _ = writeln!(std::io::stderr().lock(), "more: --cursor {cursor}");
    }
}

/// Prints rows under headings, columns as wide as they need to be.
pub(crate) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([headings[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let print = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        line(padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    print(headings.to_vec());
    for row in rows {
        print(row.iter().map(String::as_str).collect());
    }
}

/// Asks a question that is answered by typing `expected`. Nobody there to answer is a no.
pub(crate) fn confirm(question: &str, expected: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::refused("this needs a confirmation").with_hint("add --yes"));
    }
    let mut stderr = std::io::stderr();
    write!(stderr, "{question}\nType `{expected}` to go on: ")?;
    stderr.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if answer.trim() == expected { Ok(()) } else { Err(Failure::refused("not confirmed, nothing was done")) }
}

/// A bar on a terminal, nothing elsewhere.
pub(crate) struct Progress(indicatif::ProgressBar);

impl Progress {
    pub(crate) fn start() -> Self {
        let style = indicatif::ProgressStyle::with_template("{bar:30} {percent:>3} %  {elapsed:>4}  {msg}");
        let bar = indicatif::ProgressBar::new(100);
        Self(match style {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        })
    }

    pub(crate) fn show(&self, percent: i16, words: &str) {
        self.0.set_position(u64::try_from(percent).unwrap_or(0));
        self.0.set_message(words.to_owned());
    }

    pub(crate) fn end(&self) {
        self.0.finish_and_clear();
    }
}
