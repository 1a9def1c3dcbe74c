//! Checks what a person or a script enters. Must not know what is done with it.

use std::io::{IsTerminal as _, Read as _};

use zeroize::Zeroizing;

use super::LONGEST_TOKEN;

/// Reads the token from standard input. It is never an argument, which every user of
/// the host can read.
pub(super) fn token_from_stdin() -> Result<Zeroizing<String>, String> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Err(
            "--token-stdin reads a file or a pipe: `flywheelctl setup --token-stdin <FILE`".to_owned()
        );
    }
    let mut text = Zeroizing::new(String::new());
    let read = stdin.lock().take(LONGEST_TOKEN + 1).read_to_string(&mut text);
    read.map_err(|e| format!("the token cannot be read from standard input: {e}"))?;
    check_token(&text)
}

/// Returns the token without the white space around it.
pub(super) fn check_token(text: &str) -> Result<Zeroizing<String>, String> {
    let token = text.trim();
    if token.is_empty() {
        return Err("the token is empty".to_owned());
    }
    if text.len() as u64 > LONGEST_TOKEN {
        return Err(format!("the token has more than {LONGEST_TOKEN} bytes"));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("the token has white space or characters outside of ASCII within it".to_owned());
    }
    Ok(Zeroizing::new(token.to_owned()))
}

/// Checks the address of a server. The daemon checks it again, and more strictly.
pub(super) fn check_server(url: &str) -> Result<(), String> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let host = rest.unwrap_or_default().split('/').next().unwrap_or_default();
    if host.is_empty() || !url.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\') {
        return Err(format!("{url:?} is no address of a server, such as https://attic.example.com"));
    }
    if host.contains('@') {
        return Err(
            "the address of the server has a password in it: give the token by --token-stdin".to_owned()
        );
    }
    Ok(())
}

/// Checks the name of a user, which becomes an argument of `usermod`.
pub(super) fn check_user(name: &str) -> Result<(), String> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"._-$".contains(&byte);
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if first && name.len() <= 32 && name.bytes().all(inner) {
        Ok(())
    } else {
        Err(format!("{name:?} is no name of a user"))
    }
}
