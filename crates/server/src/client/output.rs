//! What the clients print: tables for people, the service's own body for programs.

use crate::CommandError;
use crate::output::line;
use clap::ValueEnum;
use service::{Random, SystemRandom};
use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

#[derive(clap::Args)]
#[group(skip)]
pub struct Arguments {
    /// A table for people, or the service's own JSON. A table on a terminal, JSON elsewhere.
    #[arg(long, value_enum, global = true)]
    output: Option<Format>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Format {
    Table,
    Json,
}

impl Arguments {
    pub fn format(&self) -> Format {
        let by_terminal = if io::stdout().is_terminal() { Format::Table } else { Format::Json };
        self.output.unwrap_or(by_terminal)
    }

    /// Whether JSON was asked for by name, for commands that otherwise print what they made and nothing around it.
    pub fn wants_json(&self) -> bool {
        self.output == Some(Format::Json)
    }
}

/// A table without lines; columns as wide as they need to be.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|&name| name.to_owned()).collect()] }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(
            cells.into_iter().map(|cell| if cell.is_empty() { "-".into() } else { clean(&cell) }).collect(),
        );
    }

    pub fn print(&self) -> io::Result<()> {
        self.lines().iter().try_for_each(|text| line(format_args!("{text}")))
    }

    fn lines(&self) -> Vec<String> {
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let pad =
            |(column, cell): (usize, &String)| format!("{cell:<width$}", width = width(column).unwrap_or(0));
        let line = |row: &Vec<String>| row.iter().enumerate().map(pad).collect::<Vec<_>>().join("  ");
        self.rows.iter().map(|row| line(row).trim_end().to_owned()).collect()
    }
}

/// Names with their values, a line each.
pub fn print_fields(fields: &[(&str, String)]) -> io::Result<()> {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    fields.iter().try_for_each(|(name, value)| line(format_args!("{name:<width$}  {}", clean(value))))
}

/// A body as it came, and a line's end.
pub fn print_body(body: &[u8]) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(body)?;
    output.write_all(b"\n")
}

/// Bytes that were asked for, as they are: to `path`, `-` or none for standard output. A file is nobody else's to read, also
/// where one was there before that others could.
pub fn write_bytes(path: Option<&Path>, bytes: &[u8]) -> Result<(), CommandError> {
    let Some(path) = path.filter(|path| *path != Path::new("-")) else {
        let mut output = io::stdout().lock();
        output.write_all(bytes)?;
        return Ok(output.flush()?);
    };
    let written = match fs::symlink_metadata(path) {
        Ok(held) if !held.is_file() => write_in_place(path, bytes),
        Ok(_) | Err(_) => replace(path, bytes),
    };
    written.map_err(|error| format!("cannot write {}: {error}", path.display()).into())
}

/// To a pipe or a device, or what a link leads to, if that is one. Whoever put a link there may not be who runs this.
fn write_in_place(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    if file.metadata()?.is_file() {
        return Err(io::Error::other(
            "it is a link to a file: name the file itself, or `-` for standard output",
        ));
    }
    file.write_all(bytes)
}

/// A new file in the place of one that may be open to others, and that somebody may have open.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", SystemRandom.guid()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written =
        file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Text that others wrote, such as tags and messages, without what would move a terminal's cursor or turn its lines
/// around.
pub fn clean(text: &str) -> String {
    let turns = |character| matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut clean = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() || turns(character) {
            clean.extend(character.escape_unicode());
        } else {
            clean.push(character);
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_foreign_text_cannot_break_out() {
        let mut table = Table::new(&["NAME", "TAGS"]);
        table.row(["payroll-2026".into(), String::new()]);
        table.row(["k".into(), "a=\u{1b}]0;x\u{7}\nb\u{202e}".into()]);
        assert_eq!(
            table.lines(),
            ["NAME          TAGS", "payroll-2026  -", "k             a=\\u{1b}]0;x\\u{7}\\u{a}b\\u{202e}"]
        );
    }

    #[test]
    fn files_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plain");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        write_bytes(Some(&path), b"one two").unwrap();
        assert_eq!(mode(), 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let reader = fs::File::open(&path).unwrap();
        write_bytes(Some(&path), b"three").unwrap();
        assert_eq!((fs::read(&path).unwrap().as_slice(), mode()), (&b"three"[..], 0o600));
        assert_eq!(io::read_to_string(reader).unwrap(), "one two", "who had it open reads what was there");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn links_to_files_are_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let [link, file] = ["link", "file"].map(|name| directory.path().join(name));
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(write_bytes(Some(&link), b"one").is_err() && !file.exists());
        fs::write(&file, b"theirs").unwrap();
        assert!(write_bytes(Some(&link), b"one").unwrap_err().to_string().contains("a link to a file"));
        assert_eq!(fs::read(&file).unwrap(), b"theirs");
        write_bytes(Some(Path::new("/dev/null")), b"one").unwrap();
    }
}
