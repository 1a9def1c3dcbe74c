//! The commands and files that the documents show, so that tests run them as they are written.

use std::fs;
use std::path::Path;

/// The blocks of one language in a document, in order.
pub fn blocks(page: &str, language: &str) -> Vec<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
    let begin = format!("\n```{language}\n");
    text.split(&begin).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}
