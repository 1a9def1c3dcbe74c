//! What holds for every configuration that is accepted.

use std::path::PathBuf;

use super::merge::Merged;
use super::validate;

/// Reads bytes as the configuration file.
pub(crate) fn decode(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let mut merged = Merged::default();
    if let Err(error) = merged.add(PathBuf::from("flywheel.toml"), text) {
        assert!(error.to_string().starts_with("flywheel.toml"));
        return;
    }
    let Ok(settings) = validate::settings(&merged, &|_| None) else { return };
    assert!(settings.caches.contains_key(&settings.default_cache));
    for route in &settings.routes {
        assert!(route.cache.iter().chain(&route.allow).all(|cache| settings.caches.contains_key(cache)));
    }
    for path in [&settings.socket, &settings.state_dir, &settings.nix.store_dir, &settings.nix.state_dir] {
        assert!(path.is_absolute(), "{}", path.display());
    }
}
