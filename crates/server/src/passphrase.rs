//! Passphrases: typed at the terminal without echo, or read from a file. Never an argument or a variable, which other
//! processes can read.

use crate::CommandError;
use crypto::SecretBytes;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use zeroize::Zeroizing;

const MAX_BYTES: usize = 1024;
/// Of a passphrase for a new key. Guessing is done offline, on whoever copied the file's own machines.
const LEAST_CHARACTERS: usize = 12;
const INTERRUPT: u8 = 3;
const END_OF_INPUT: u8 = 4;
const BACKSPACES: [u8; 2] = [8, 127];

/// The first line of a file, or of a descriptor as `/dev/fd/3`.
pub fn from_file(path: &Path) -> Result<SecretBytes, CommandError> {
    let unreadable = |error| format!("cannot read the passphrase file {}: {error}", path.display());
    // Never grows, so that no copy is left behind.
    let mut content = Zeroizing::new(Vec::with_capacity(MAX_BYTES + 1));
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() > MAX_BYTES {
        return Err(format!("{} has more than {MAX_BYTES} bytes", path.display()).into());
    }
    let line = content.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        return Err(format!("the first line of the passphrase file {} is empty", path.display()).into());
    }
    Ok(SecretBytes::new(line.to_vec()))
}

/// For an existing key.
pub fn ask(what: &str) -> Result<SecretBytes, CommandError> {
    Terminal::open()?.ask(&format!("Passphrase of {what}: "))
}

/// For a new key: twice.
pub fn ask_new(what: &str) -> Result<SecretBytes, CommandError> {
    let terminal = Terminal::open()?;
    let passphrase =
        terminal.ask(&format!("New passphrase for {what}, at least {LEAST_CHARACTERS} characters: "))?;
    check_new(&passphrase)?;
    let again = terminal.ask("Again: ")?;
    if passphrase.danger_expose() != again.danger_expose() {
        return Err("the two passphrases differ".into());
    }
    Ok(passphrase)
}

pub fn check_new(passphrase: &SecretBytes) -> Result<(), CommandError> {
    let text = std::str::from_utf8(passphrase.danger_expose()).map_err(|_| "the passphrase is not UTF-8")?;
    if text.chars().count() < LEAST_CHARACTERS {
        return Err(format!("the passphrase has fewer than {LEAST_CHARACTERS} characters").into());
    }
    Ok(())
}

/// A question to which one types `yes`.
pub fn confirm(question: &str) -> Result<bool, CommandError> {
    let terminal = Terminal::open()?;
    terminal.show(question)?;
    let answer = terminal.line(true)?;
    Ok(answer.danger_expose() == b"yes")
}

struct Terminal(File);

impl Terminal {
    fn open() -> Result<Self, CommandError> {
        let terminal = File::options().read(true).write(true).open("/dev/tty");
        terminal.map(Self).map_err(|_| "there is no terminal to ask at; give --passphrase-file".into())
    }

    fn show(&self, text: &str) -> Result<(), CommandError> {
        Ok((&self.0).write_all(text.as_bytes())?)
    }

    fn ask(&self, question: &str) -> Result<SecretBytes, CommandError> {
        // Before the question: whoever answers quickly is not shown either.
        let quiet = Quiet::begin(&self.0)?;
        self.show(question)?;
        let line = self.line(false);
        drop(quiet);
        self.show("\n")?;
        let line = line?;
        if line.is_empty() { Err("no passphrase was typed".into()) } else { Ok(line) }
    }

    /// Byte by byte: while signals are off, an interrupt is a byte like others, and the terminal is put back first.
    fn line(&self, echoed: bool) -> Result<SecretBytes, CommandError> {
        let mut line = Zeroizing::new(Vec::with_capacity(MAX_BYTES));
        loop {
            let mut byte = [0];
            let read = (&self.0).read(&mut byte)?;
            match byte[0] {
                _ if read == 0 => return Err("the terminal was closed".into()),
                INTERRUPT | END_OF_INPUT => return Err("interrupted".into()),
                b'\n' | b'\r' => return Ok(SecretBytes::new(line.to_vec())),
                erase if !echoed && BACKSPACES.contains(&erase) => erase_character(&mut line),
                _ if line.len() == MAX_BYTES => return Err(format!("more than {MAX_BYTES} bytes").into()),
                other => line.push(other),
            }
        }
    }
}

/// The last character, which may be several bytes of UTF-8.
fn erase_character(line: &mut Vec<u8>) {
    while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
}

/// No echo, no signals, until dropped.
struct Quiet<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Quiet<'a> {
    fn begin(terminal: &'a File) -> Result<Quiet<'a>, CommandError> {
        let before = tcgetattr(terminal)?;
        let mut quiet = before.clone();
        quiet.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        tcsetattr(terminal, OptionalActions::Flush, &quiet)?;
        Ok(Quiet { terminal, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &[u8]) -> Result<Vec<u8>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        from_file(file.path()).map(|line| line.danger_expose().to_vec()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_first_line_of_a_file_is_the_passphrase() {
        for content in
            [&b"correct horse"[..], b"correct horse\n", b"correct horse\r\n", b"correct horse\nmore\n"]
        {
            assert_eq!(read(content).unwrap(), b"correct horse");
        }
        for content in [&b""[..], b"\n", &[b'a'; MAX_BYTES + 1]] {
            assert!(read(content).is_err());
        }
    }

    #[test]
    fn a_new_passphrase_has_twelve_characters() {
        let check = |text: &str| check_new(&SecretBytes::new(text.as_bytes().to_vec())).is_ok();
        assert!(check("abcdefghijkl") && check("äöüäöüäöüäöü"));
        assert!(!check("abcdefghijk") && !check("äöüäöüäöü"));
    }

    #[test]
    fn a_character_is_erased_whole() {
        let mut line = "aö".as_bytes().to_vec();
        erase_character(&mut line);
        assert_eq!(line, b"a");
        erase_character(&mut line);
        erase_character(&mut line);
        assert!(line.is_empty());
    }
}
