//! The binding of the group to one database.

use shared::settings::SettingError;

use crate::{store::database::DatabaseIdentity, stream::Binding};

/// Relation of a database to the one that the group is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// It is the same database, on the same server or on a replica of it.
    Same,
    /// It has the same id and may replace the original: it is on another server, or has the same name on the same server. A
    /// restored copy, or an upgraded server.
    Copy,
    Other,
}

/// Compares a database with the binding. What either side does not know counts as equal.
pub fn relation(database: &DatabaseIdentity, binding: &Binding) -> Relation {
    if binding.database != database.id.to_string() {
        return Relation::Other;
    }
    match (&binding.system_identifier, &database.system_identifier) {
        (Some(bound), Some(found)) if bound != found => Relation::Copy,
        (Some(_), Some(_)) if binding.oid.is_some_and(|oid| oid != database.oid) => {
            // A server has one database of a name, so the original was dropped or renamed.
            if binding.name == database.name { Relation::Copy } else { Relation::Other }
        }
        _ => Relation::Same,
    }
}

/// The database of a consumer, with the latest binding of its group that the consumer has accepted.
#[derive(Clone, Debug)]
pub(crate) struct BoundDatabase {
    pub(crate) database: DatabaseIdentity,
    pub(crate) binding: Binding,
}

impl BoundDatabase {
    /// Accepts the binding of the group. Returns the relation of the database to it.
    ///
    /// # Errors
    /// When the group is bound to another database, or has been bound to another copy since the binding accepted last.
    pub(crate) fn accept(&mut self, group: &str, binding: Binding) -> Result<Relation, SettingError> {
        let relation = relation(&self.database, &binding);
        let is_refused = match relation {
            Relation::Same => false,
            Relation::Copy => is_rebound(&self.binding, &binding),
            Relation::Other => true,
        };
        if is_refused {
            return Err(wrong_database(group, &self.database, &binding));
        }
        self.binding = binding;
        Ok(relation)
    }
}

/// Returns whether two bindings with the same id are certainly to different databases.
fn is_rebound(before: &Binding, now: &Binding) -> bool {
    let is_another_server = match (&before.system_identifier, &now.system_identifier) {
        (Some(before), Some(now)) => before != now,
        _ => false,
    };
    is_another_server || matches!((before.oid, now.oid), (Some(before), Some(now)) if before != now)
}

/// Describes a database that the group is not bound to.
pub fn mismatch(group: &str, database: &DatabaseIdentity, binding: &Binding) -> String {
    let bound = binding.database.get(..8).unwrap_or(&binding.database);
    let this = if binding.database == database.id.to_string() { "its copy" } else { "database" };
    format!(
        "consumer group '{group}' writes to database '{}' (id {bound}, {}), but this is {this} '{}' (id {}, {}); \
         correct DATABASE_URL or LIKES_GROUP, or run likesctl group bind",
        binding.name,
        binding.address,
        database.name,
        database.id.short(),
        database.address
    )
}

/// Returns the settings error of a consumer whose database is not the group's.
pub(crate) fn wrong_database(group: &str, database: &DatabaseIdentity, binding: &Binding) -> SettingError {
    SettingError::new("DATABASE_URL", mismatch(group, database, binding))
}

/// Describes a restored copy of the group's database.
pub fn copy_warning(database: &DatabaseIdentity, binding: &Binding) -> String {
    let difference = match (&database.system_identifier, &binding.system_identifier) {
        (Some(found), Some(bound)) if found != bound => {
            format!("is on a server with system identifier {found} instead of {bound}")
        }
        _ => "was created again on its server".to_owned(),
    };
    format!(
        "database '{}' ({}) has the id of the database that the group is bound to, but {difference}",
        database.name, database.address
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> DatabaseIdentity {
        DatabaseIdentity {
            id: "00a1b2c3-d4e5-4f60-8a9b-0c1d2e3f4a5b".parse().unwrap(),
            name: "likes".to_owned(),
            oid: 5,
            address: "Postgres at a:5432".to_owned(),
            system_identifier: Some("7".to_owned()),
            timeline: Some(1),
            awaits_standby: false,
        }
    }

    fn binding() -> Binding {
        Binding {
            database: database().id.to_string(),
            name: "likes".to_owned(),
            oid: Some(5),
            address: "Postgres at a:5432".to_owned(),
            system_identifier: Some("7".to_owned()),
            timeline: Some(1),
            server_recorded: None,
            awaits_standby: false,
            bound_at_ms: 0,
            bound_by: "host-1".to_owned(),
            open_incidents: None,
        }
    }

    #[test]
    fn a_replica_is_the_same_database() {
        let promoted = DatabaseIdentity { timeline: Some(2), address: "b".to_owned(), ..database() };
        assert_eq!(relation(&promoted, &binding()), Relation::Same);
        let unreadable = DatabaseIdentity { system_identifier: None, ..database() };
        assert_eq!(relation(&unreadable, &binding()), Relation::Same);
    }

    #[test]
    fn the_id_on_another_server_is_a_copy() {
        let copy = DatabaseIdentity { system_identifier: Some("8".to_owned()), oid: 9, ..database() };
        assert_eq!(relation(&copy, &binding()), Relation::Copy);
        assert!(copy_warning(&copy, &binding()).contains("system identifier 8 instead of 7"));
    }

    #[test]
    fn a_database_that_was_dropped_and_restored_is_a_copy() {
        let restored = DatabaseIdentity { oid: 6, ..database() };
        assert_eq!(relation(&restored, &binding()), Relation::Copy);
        assert!(copy_warning(&restored, &binding()).contains("was created again"));
    }

    #[test]
    fn a_copy_is_accepted_until_the_group_is_bound_to_another() {
        let original = BoundDatabase { database: database(), binding: binding() };
        let to_copy = Binding { system_identifier: Some("8".to_owned()), oid: Some(9), ..binding() };
        assert!(original.clone().accept("g", to_copy.clone()).is_err());
        let restored = Binding { oid: Some(6), ..binding() };
        assert!(original.clone().accept("g", restored).is_err());
        // What one of the bindings does not say counts as equal.
        let unknown = Binding { system_identifier: None, oid: None, ..binding() };
        assert_eq!(original.clone().accept("g", unknown).unwrap(), Relation::Same);

        let of_copy = DatabaseIdentity { system_identifier: Some("8".to_owned()), oid: 9, ..database() };
        let mut copy = BoundDatabase { database: of_copy, binding: binding() };
        assert_eq!(copy.accept("g", binding()).unwrap(), Relation::Copy);
        assert_eq!(copy.accept("g", to_copy).unwrap(), Relation::Same);
        assert!(copy.accept("g", binding()).is_err());
    }

    #[test]
    fn another_id_and_a_copy_on_the_same_server_are_other_databases() {
        let other = "10a1b2c3-d4e5-4f60-8a9b-0c1d2e3f4a5b".parse().unwrap();
        assert_eq!(relation(&DatabaseIdentity { id: other, ..database() }, &binding()), Relation::Other);
        let copy = DatabaseIdentity { oid: 6, name: "staging".to_owned(), ..database() };
        assert_eq!(relation(&copy, &binding()), Relation::Other);
        assert!(mismatch("g", &copy, &binding()).contains("but this is its copy 'staging'"));
        let damaged = Binding { database: "x".to_owned(), ..binding() };
        assert_eq!(relation(&database(), &damaged), Relation::Other);
        assert!(mismatch("g", &database(), &damaged).contains("'likes' (id x, Postgres at a:5432)"));
    }
}
