//! Key and headers of a server: from flags and the environment to the target, past everything that is stored.

use crate::CliError;
use crate::args::SecretArgs;
use bench_core::plan::Plan;
use bench_runner::targets::Secrets;

/// What `plan`'s server is opened with; `env` reads an environment variable.
///
/// # Errors
/// Secrets for a target that is no server, a header without a name.
pub(crate) fn gather(
    args: &SecretArgs,
    plan: &Plan,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Secrets, CliError> {
    match &plan.server {
        None => refuse_without_server(args).map(|()| Secrets::default()),
        Some(server) => of_server(args, &server.api_key_env, env),
    }
}

/// # Errors
/// Secrets that nobody would be told.
pub(crate) fn refuse_without_server(args: &SecretArgs) -> Result<(), CliError> {
    let given = [("--api-key", args.api_key.is_some()), ("--header", !args.header.is_empty())];
    match given.iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(CliError::Usage(format!("{flag}: only with a server, see --base-url"))),
        None => Ok(()),
    }
}

/// What a server is opened with; the key may stand in the environment variable `api_key_env`.
///
/// # Errors
/// A header without a name.
pub(crate) fn of_server(
    args: &SecretArgs,
    api_key_env: &str,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Secrets, CliError> {
    let headers = args.header.iter().map(|text| header(text)).collect::<Result<Vec<_>, _>>()?;
    let from_env = || env(api_key_env).filter(|key| !key.is_empty());
    let own_authorization = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization"));
    let api_key = if own_authorization { None } else { args.api_key.clone().or_else(from_env) };
    Ok(Secrets { api_key, headers })
}

/// `NAME=VALUE` as vLLM writes it, `NAME: VALUE` as everybody else. What is wrong is said without the text.
fn header(text: &str) -> Result<(String, String), CliError> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let at = text.find(['=', ':']).filter(|&at| at > 0 && text[..at].chars().all(is_name));
    let Some(at) = at else {
        return Err(CliError::Usage("--header: expected NAME=VALUE or \"NAME: VALUE\"".to_owned()));
    };
    Ok((text[..at].to_owned(), text[at + 1..].trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bench_core::spec::RunSpec;

    fn gathered(spec: &str, key: Option<&str>, headers: &[&str]) -> Result<String, String> {
        let plan = RunSpec::from_toml("t", &format!("[[models]]\nid = \"a\"\n{spec}")).unwrap().resolve();
        let args = SecretArgs {
            api_key: key.map(str::to_owned),
            header: headers.iter().map(|h| (*h).to_owned()).collect(),
        };
        let env = |name: &str| (name != "UNSET").then(|| format!("value of {name}"));
        let secrets = gather(&args, &plan.unwrap(), env).map_err(|e| e.to_string())?;
        Ok(format!("{:?} {:?}", secrets.api_key, secrets.headers))
    }

    #[test]
    fn flags_come_before_the_environment_and_headers_before_both() {
        let http =
            |rest: &str| format!("[target]\nkind = \"http\"\n[server]\nbase_url = \"http://h\"\n{rest}");
        for (spec, key, headers, expected) in [
            (http(""), Some("k"), vec![], r#"Some("k") []"#),
            (http(""), None, vec![], r#"Some("value of OPENAI_API_KEY") []"#),
            (http("api_key_env = \"MINE\""), None, vec![], r#"Some("value of MINE") []"#),
            (http("api_key_env = \"UNSET\""), None, vec![], "None []"),
            (
                http(""),
                None,
                vec!["x-a=b=c", "X-B: d"],
                r#"Some("value of OPENAI_API_KEY") [("x-a", "b=c"), ("X-B", "d")]"#,
            ),
            (http(""), Some("k"), vec!["authorization=Basic x"], r#"None [("authorization", "Basic x")]"#),
            (String::new(), None, vec![], "None []"),
        ] {
            assert_eq!(gathered(&spec, key, &headers).unwrap(), expected, "{spec} {key:?} {headers:?}");
        }
        for (spec, key, headers, says) in [
            (String::new(), Some("geheim"), vec![], "--api-key: only with a server"),
            (String::new(), None, vec!["a=geheim"], "--header: only with a server"),
            (http(""), None, vec!["geheim"], "--header: expected NAME=VALUE"),
            (http(""), None, vec!["=geheim"], "--header: expected NAME=VALUE"),
            (http(""), None, vec!["a b=geheim"], "--header: expected NAME=VALUE"),
        ] {
            let error = gathered(&spec, key, &headers).unwrap_err();
            assert!(error.starts_with(says) && !error.contains("geheim"), "{error}");
        }
    }
}
