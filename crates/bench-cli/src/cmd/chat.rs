//! `ossbench chat`: a conversation, line by line, until end of input.

use super::generate::answer;
use super::model;
use crate::args::ChatArgs;
use crate::{CliError, Io};
use bench_engine::text::{Turn, harmony::Role};
use std::io::BufRead;

pub(crate) fn run(args: &ChatArgs, io: &mut Io<'_>) -> Result<(), CliError> {
    let opened = model::open(&args.model, &args.engine, &args.limits, io)?;
    writeln!(io.err, "{} is ready; an empty line or end of input ends the chat", args.model)?;
    converse(std::io::stdin().lock(), args, &opened, io)
}

fn converse(
    mut input: impl BufRead,
    args: &ChatArgs,
    opened: &model::Opened,
    io: &mut Io<'_>,
) -> Result<(), CliError> {
    let mut turns: Vec<Turn> = Vec::new();
    loop {
        write!(io.err, "> ")?;
        io.err.flush()?;
        let mut line = String::new();
        let read = input.read_line(&mut line);
        if read.map_err(|e| CliError::Failed(format!("cannot read standard input: {e}")))? == 0 {
            return Ok(());
        }
        let text = line.trim();
        if text.is_empty() {
            return Ok(());
        }
        turns.push(Turn::new(Role::User, text));
        let reply = answer(opened, &turns, &args.limits, &args.sampling, io)?;
        turns.push(Turn::new(Role::Assistant, reply));
    }
}
