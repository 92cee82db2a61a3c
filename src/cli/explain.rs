//! `ratelimitd explain`: what the rules do to a request, told from the rules files alone. A running server tells the same on
//! its admin port, with what the counters hold.

use clap::Args;

use crate::config::{self, Problems};
use crate::descriptor::{Descriptor, Entry, Request, RequestBounds, RequestError};
use crate::settings::RulesArgs;
use crate::store::key_of;

/// Which rules, and the request to explain.
#[derive(Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    rules: RulesArgs,

    /// The domain that Envoy sends
    #[arg(long, value_name = "DOMAIN")]
    domain: String,

    /// The entries of a descriptor, in order; a comma on its own begins another descriptor
    #[arg(value_name = "KEY=VALUE", required = true)]
    entries: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    #[error("{0}")]
    Rules(#[from] Problems),
    #[error("`{0}` is no entry: write KEY=VALUE")]
    Entry(String),
    #[error(transparent)]
    Request(#[from] RequestError),
}

pub fn run(args: ExplainArgs) -> Result<(), ExplainError> {
    let request = request(args.domain, &args.entries)?;
    let options = args.rules.options();
    let loaded = config::load(&args.rules.paths(), options)?;
    let mut explanation = loaded.rules.explain(&request);
    for limit in explanation.limits_mut() {
        limit.key = Some(key_of(&limit.counter));
    }
    super::print(&explanation.to_string());
    Ok(())
}

fn request(domain: String, entries: &[String]) -> Result<Request, ExplainError> {
    let entry = |text: &String| {
        let (key, value) = text.split_once('=').ok_or_else(|| ExplainError::Entry(text.clone()))?;
        Ok(Entry::new(key, value))
    };
    let descriptor = |entries: &[String]| {
        let entries = entries.iter().map(entry).collect::<Result<_, ExplainError>>()?;
        Ok(Descriptor { entries, ..Descriptor::default() })
    };
    let descriptors = entries.split(|text| text == ",").map(descriptor).collect::<Result<_, ExplainError>>()?;
    Ok(Request::new(domain, descriptors, 1, RequestBounds::default())?)
}
