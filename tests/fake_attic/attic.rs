//! A program that behaves like the attic client where the daemon uses it: options, configuration
//! file, output, exit statuses. For tests. The file `mode` in `$FAKE_DIR` says what it does wrong;
//! each run is recorded in `runs` beside it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::print_stdout)]

use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use flywheel::cache::{CacheClient, CacheError, ClientSettings, TokenSource, UploadInfo};
use flywheel::store::{NixDb, PathInfo, nar};
use flywheel::types::{CacheName, StoreDir, StorePath};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mode = mode();
    note(&format!("{} {}", std::process::id(), args.join(" ")));
    for (name, value) in std::env::vars() {
        note(&format!("env {name}={value}"));
    }
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--version"] => {
            println!("attic {}", std::env::var("FAKE_VERSION").unwrap_or_default());
            ExitCode::SUCCESS
        }
        ["cache", "info", reference] => answer(info(reference)),
        ["push", rest @ ..] => push(rest, &mode),
        // Not an option of attic: a test that a job's arguments and status pass through.
        ["echo", rest @ ..] => {
            let read: Vec<String> = std::io::stdin().lines().map_while(Result::ok).collect();
            println!("{} / {}", rest.join(" "), read.join(","));
            println!("{}", std::fs::read_to_string(config_file()).unwrap_or_default());
            ExitCode::from(7)
        }
        _ => {
            eprintln!("error: unrecognized subcommand");
            ExitCode::from(2)
        }
    }
}

fn dir() -> PathBuf {
    std::env::var("FAKE_DIR").expect("FAKE_DIR").into()
}

fn mode() -> String {
    std::fs::read_to_string(dir().join("mode")).unwrap_or_default().trim().to_owned()
}

/// Writes one line in one write, so that parallel runs do not mix.
fn note(text: &str) {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(dir().join("runs"));
    file.unwrap().write_all(format!("{text}\n").as_bytes()).unwrap();
}

fn answer(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn config_file() -> PathBuf {
    Path::new(&std::env::var("XDG_CONFIG_HOME").expect("XDG_CONFIG_HOME")).join("attic/config.toml")
}

/// The server and the cache of `CACHE` or `SERVER:CACHE`.
fn client(reference: &str) -> Result<CacheClient, String> {
    let text = std::fs::read_to_string(config_file()).map_err(|e| e.to_string())?;
    let config: toml::Table = text.parse().map_err(|e: toml::de::Error| e.to_string())?;
    let (server, cache) = match reference.split_once(':') {
        Some((server, cache)) => (server, cache),
        None => (config["default-server"].as_str().unwrap(), reference),
    };
    let server = config["servers"].get(server).ok_or(format!("Server \"{server}\" does not exist"))?;
    let token = match server.get("token-file") {
        Some(file) => {
            let file = file.as_str().unwrap();
            std::fs::read_to_string(file).map_err(|e| format!("Failed to read token from {file}: {e}"))?;
            TokenSource::File(file.into())
        }
        None => TokenSource::None,
    };
    let endpoints = vec![server["endpoint"].as_str().unwrap().to_owned()];
    let settings = ClientSettings::new(endpoints, CacheName::parse(cache).unwrap(), token);
    CacheClient::new(settings).map_err(|e| e.to_string())
}

/// The token of `SERVER:CACHE`.
fn token(reference: &str) -> String {
    let text = std::fs::read_to_string(config_file()).unwrap();
    let config: toml::Table = text.parse().unwrap();
    let server = reference.split_once(':').unwrap().0;
    let file = config["servers"][server]["token-file"].as_str().unwrap();
    std::fs::read_to_string(file).unwrap().trim().to_owned()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The wording of attic for a server's answer.
fn words(error: &CacheError) -> String {
    match error.status {
        Some(401) => "Unauthorized: Unauthorized.".to_owned(),
        Some(status) => format!("HTTP {status}: {}", error.message),
        None => format!("error sending request: {}", error.message),
    }
}

fn info(reference: &str) -> Result<(), String> {
    let client = client(reference)?;
    let found = runtime().block_on(client.discover()).map_err(|e| words(&e))?;
    eprintln!("               Public: {}", found.config.is_public.unwrap_or_default());
    Ok(())
}

fn push(args: &[&str], mode: &str) -> ExitCode {
    let mut reference = None;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match *arg {
            "--stdin" | "--no-closure" | "--ignore-upstream-cache-filter" => {}
            "-j" | "--jobs" => drop(args.next()),
            text => reference = Some(text),
        }
    }
    let lines: Vec<String> =
        std::io::stdin().lock().lines().map_while(Result::ok).filter(|l| !l.is_empty()).collect();
    note(&format!("{} took {} paths", std::process::id(), lines.len()));
    match mode.split_once(' ').unwrap_or((mode, "")) {
        ("crash", _) => std::process::abort(),
        ("hang", _) => loop {
            std::thread::sleep(std::time::Duration::from_secs(3600));
        },
        ("liar", _) => {
            lines.iter().for_each(|path| eprintln!("✅ {} (deduplicated)", base(path)));
            return ExitCode::SUCCESS;
        }
        ("poison", name) if lines.iter().any(|path| path.contains(name)) => {
            eprintln!("Error: something about one of the paths");
            return ExitCode::FAILURE;
        }
        // As a server that repeats the request's header in its error, with a control character in the middle of
        // the token, and the token where a long line is cut.
        ("echo", _) => {
            let token = token(reference.unwrap_or_default());
            let (begin, end) = token.split_at(token.len() / 2);
            for path in &lines {
                eprintln!("❌ {}: HTTP 413 Payload Too Large: Bearer {begin}\u{7}{end}", base(path));
            }
            eprintln!("{}{token}", "x".repeat(4096 - token.len() / 2));
            return answer(Err(format!("HTTP 413 Payload Too Large: {token}")));
        }
        ("garbage", _) => {
            let mut noise: Vec<u8> = (0..=255).cycle().take(100_000).collect();
            noise.extend("\n✅ ✅ (\n❌ : \nError:\n".bytes());
            std::io::stderr().write_all(&noise).unwrap();
            std::io::stdout().write_all(&noise).unwrap();
        }
        _ => {}
    }
    match upload(reference.unwrap_or_default(), &lines) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => answer(Err("some paths failed".to_owned())),
        Err(error) => answer(Err(error)),
    }
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}

/// As with attic, the whole batch fails when one of its paths is not valid.
fn upload(reference: &str, paths: &[String]) -> Result<bool, String> {
    let client = client(reference)?;
    let var = |name: &str, otherwise: &str| std::env::var(name).unwrap_or_else(|_| otherwise.to_owned());
    let store_dir = StoreDir::new(&var("NIX_STORE_DIR", "/nix/store")).unwrap();
    let journal = NixDb::open(Path::new(&var("NIX_STATE_DIR", "/nix/var/nix")), &store_dir).unwrap();
    let mut infos: Vec<PathInfo> = Vec::new();
    for path in paths {
        let parsed = StorePath::parse(base(path)).map_err(|e| e.to_string())?;
        let info = journal.info(&parsed).map_err(|e| e.to_string())?;
        infos.push(info.ok_or(format!("path '{path}' is not valid"))?);
    }
    let runtime = runtime();
    let hashes = infos.iter().map(|i| i.path.hash_part().to_owned()).collect();
    let missing = runtime.block_on(client.missing(hashes)).map_err(|e| words(&e))?;
    let mut good = true;
    for info in infos.iter().filter(|i| missing.contains(i.path.hash_part())) {
        let upload = UploadInfo {
            cache: client.cache().clone(),
            store_path_hash: info.path.hash_part().to_owned(),
            store_path: store_dir.full(&info.path),
            references: info.references.iter().map(|r| r.base().to_owned()).collect(),
            system: None,
            deriver: None,
            sigs: info.sigs.clone(),
            ca: info.ca.clone(),
            nar_hash: info.nar_hash.to_string(),
            nar_size: info.nar_size,
        };
        let file = store_dir.as_path().join(info.path.base());
        match runtime.block_on(client.upload(&upload, nar::stream(file))) {
            Ok(_) => eprintln!("✅ {} (1.0 MiB/s)", info.path.base()),
            Err(error) => {
                eprintln!("❌ {}: {}", info.path.base(), words(&error));
                good = false;
            }
        }
    }
    Ok(good)
}
