//! Classifies failures of Postgres: by what resolves them, and for a statement with rows, by what they say about its rows.

use tokio_postgres::error::{DbError, SqlState};

use super::tls;

/// Whether the server refuses the login: unknown user, wrong password, no line in `pg_hba.conf`.
pub(super) fn is_login_refusal(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|state| state.code().starts_with("28"))
}

/// Class of a failed statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureClass {
    /// Transient: the batch is retried with exponential backoff, without a limit.
    Retry,
    /// Rejected: the table does not accept some of the rows. Bisection finds them.
    Reject,
    /// Halting: an operator has to fix the schema, the permissions or a certificate. Retried at long intervals.
    Halt,
}

/// Classifies a failure by its SQLSTATE (Postgres manual, appendix A) or, without one, by the TLS error. Everything else is
/// transient: an unforeseen error must not discard a like.
pub fn classify(error: &tokio_postgres::Error) -> FailureClass {
    let of_connection = || if tls::is_refusal(error) { FailureClass::Halt } else { FailureClass::Retry };
    error.code().map_or_else(of_connection, class_of_sqlstate)
}

/// Conclusion about the rows of a failed statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowsFailure {
    /// The table does not accept some of the rows.
    Rejected,
    /// The error may be caused by some of the rows (a locked key, a slow trigger, an unknown SQLSTATE), but proves nothing about
    /// them.
    Unknown,
    /// The error is caused by the server or the connection, not by the rows.
    Server,
}

/// Classifies the failure of a statement with rows, by its SQLSTATE and the routine of Postgres that reports it.
pub fn classify_rows(error: &tokio_postgres::Error) -> RowsFailure {
    let routine = error.as_db_error().and_then(DbError::routine).unwrap_or_default();
    error.code().map_or(RowsFailure::Server, |state| rows_failure(state, routine))
}

fn rows_failure(state: &SqlState, routine: &str) -> RowsFailure {
    if *state == SqlState::QUERY_CANCELED {
        return RowsFailure::Unknown;
    }
    // RAISE in a trigger, with any SQLSTATE.
    let is_raised = routine == "exec_stmt_raise";
    if *state == SqlState::INSUFFICIENT_PRIVILEGE {
        // Row-level security checks a row. A missing privilege is no fault of a row, and can be missing after the table was
        // verified: REVOKE does not wait for its lock.
        let is_about_row = is_raised || routine == "ExecWithCheckOptions";
        return if is_about_row { RowsFailure::Rejected } else { RowsFailure::Server };
    }
    match state.code().get(..2).unwrap_or_default() {
        "22" | "23" | "44" | "P0" => RowsFailure::Rejected,
        // connection, read-only transaction, login, resources, intervention by an operator, I/O
        "08" | "25" | "28" | "53" | "57" | "58" if !is_raised => RowsFailure::Server,
        _ => RowsFailure::Unknown,
    }
}

fn class_of_sqlstate(state: &SqlState) -> FailureClass {
    let code = state.code();
    match code.get(..2).unwrap_or_default() {
        // data exception, integrity constraint, WITH CHECK OPTION, errors raised by triggers
        "22" | "23" | "44" | "P0" => FailureClass::Reject,
        // not supported; invalid user, database or schema; undefined object or missing permission
        "0A" | "28" | "3D" | "3F" | "42" => FailureClass::Halt,
        _ => FailureClass::Retry,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstates_are_classified_by_required_action() {
        let retry = [
            "08006", "25006", "40001", "40P01", "53100", "53300", "55P03", "57014", "57P01", "58030", "XX000",
        ];
        let reject = ["22003", "22P04", "23502", "23505", "23514", "44000", "P0001"];
        let halt = ["0A000", "28P01", "3D000", "3F000", "42501", "42703", "42P01", "42P10"];
        for (codes, class) in
            [(&retry[..], FailureClass::Retry), (&reject, FailureClass::Reject), (&halt, FailureClass::Halt)]
        {
            for code in codes {
                assert_eq!(class_of_sqlstate(&SqlState::from_code(code)), class, "{code}");
            }
        }
    }

    #[test]
    fn an_error_that_a_trigger_raises_is_not_caused_by_the_server() {
        let failure = |code, routine| rows_failure(&SqlState::from_code(code), routine);
        for code in ["42501", "23514", "P0001"] {
            assert_eq!(failure(code, "exec_stmt_raise"), RowsFailure::Rejected, "{code}");
        }
        for code in ["08006", "25006", "28000", "53100", "57P01", "58030", "57014", "XX000"] {
            assert_eq!(failure(code, "exec_stmt_raise"), RowsFailure::Unknown, "{code}");
        }
        assert_eq!(failure("42501", "ExecWithCheckOptions"), RowsFailure::Rejected, "row-level security");
        assert_eq!(failure("42501", "aclcheck_error"), RowsFailure::Server);
    }

    #[test]
    fn only_some_sqlstates_say_something_about_rows() {
        let rejected = ["22003", "23502", "23514", "44000", "P0001"];
        let unknown = ["40001", "40P01", "42P01", "55P03", "57014", "54000", "XX000", "ABCDE"];
        let server = ["08006", "25006", "42501", "53100", "57P01", "57P02", "58030"];
        for (codes, failure) in [
            (&rejected[..], RowsFailure::Rejected),
            (&unknown, RowsFailure::Unknown),
            (&server, RowsFailure::Server),
        ] {
            for code in codes {
                assert_eq!(rows_failure(&SqlState::from_code(code), ""), failure, "{code}");
            }
        }
    }
}
