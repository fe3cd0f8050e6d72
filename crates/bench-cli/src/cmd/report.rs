//! `ossbench report`: every CSV, figure and table, rebuilt from raw results alone.

use super::analyze::{print_files, print_latest, print_page, report_paths, some_runs};
use crate::args::ReportArgs;
use crate::{CliError, Io};

pub(crate) fn run(args: &ReportArgs, io: &mut Io<'_>) -> Result<(), CliError> {
    let inputs = some_runs(&args.paths.results, io)?;
    let files = bench_report::rebuild(&inputs, &report_paths(&args.paths))?;
    print_latest(&inputs, args.output, io)?;
    print_files(&files, args.output, io)?;
    print_page(&files, args.output, io)
}
