//! Reassignment of pending entries to another consumer, for `pending claim`, `pending retry` and `consumers remove`.

use consumer::entry::EntryId;
use futures_util::FutureExt;

use crate::{
    action::{Action, ActionResult, Apply, Change, Report},
    context::Context,
    exit::CliError,
    scan::{Item, Pending, PendingScan},
    selection::Filter,
};

/// Reassigns all matching entries to a consumer. `deliveries` sets their delivery count; `None` keeps it.
pub(crate) async fn reassign(
    context: &Context,
    filter: &Filter,
    action: &Action<'_>,
    to: &str,
    deliveries: Option<u64>,
) -> Result<Report, CliError> {
    let change = Change {
        scan: &|bound| Box::new(PendingScan::new(context, filter, bound, false)),
        apply: Apply::Change(&|partition, entries| {
            async move {
                let ids: Vec<EntryId> = entries.iter().map(Item::id).collect();
                let (reassigned, deleted) =
                    context.streams.hand_over(partition, &ids, to, deliveries).await?;
                let is_deleted = |entry: &Pending| deleted.contains(&entry.id());
                let reason = "deleted from the stream: its likes are lost";
                Ok(ActionResult::with_skipped(reassigned.len(), &entries, is_deleted, reason))
            }
            .boxed_local()
        }),
    };
    action.apply(context, change).await
}
