//! Verification of the table: its columns, its unique key, and whatever else decides how rows can be written to it.
//!
//! A writing transaction locks the table against changes and compares its [fingerprint](FINGERPRINT) with that of the
//! verified description. The description is read again only when they differ.

use std::fmt;

use thiserror::Error;
use tokio_postgres::{Client, Error, types::Type};

/// Name of the table, resolved by the search path as a statement of Postgres resolves it.
const TABLE: &str = "likes";

/// Columns, with the type that the direct copy requires and its name in SQL.
const COLUMNS: [(&str, Type, &str); 3] = [
    ("user_id", Type::INT8, "bigint"),
    ("post_id", Type::INT8, "bigint"),
    ("created_at", Type::TIMESTAMPTZ, "timestamp with time zone"),
];

/// Returns the session and a text that changes with every change of the table that matters: columns, indexes, constraints,
/// triggers with their functions, row-level security. Parameter: the name of the table.
pub(super) const FINGERPRINT: &str = "
SELECT pg_backend_pid(), current_setting('synchronous_standby_names') <> '', concat_ws(',', c.oid, c.xmin,
    (SELECT string_agg(a.xmin::text, ' ' ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
     WHERE a.attrelid = c.oid AND a.attnum > 0),
    (SELECT string_agg(i.xmin::text, ' ' ORDER BY i.indexrelid) FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid),
    CASE WHEN c.relhastriggers THEN
        (SELECT string_agg(t.xmin::text || ':' || p.xmin, ' ' ORDER BY t.oid)
         FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid WHERE t.tgrelid = c.oid) END,
    CASE WHEN c.relrowsecurity THEN
        (SELECT string_agg(p.xmin::text, ' ' ORDER BY p.oid) FROM pg_catalog.pg_policy p WHERE p.polrelid = c.oid) END)
FROM pg_catalog.pg_class c WHERE c.oid = to_regclass($1)";

const RELATION: &str = "
SELECT n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text,
    EXISTS (SELECT FROM pg_partition_tree(c.oid) AS part JOIN pg_catalog.pg_class leaf ON leaf.oid = part.relid
            WHERE leaf.relpersistence = 'u')
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass($1)";

/// The type of a domain is the type that it is based on.
const COLUMN: &str = "
SELECT a.attname::text, format_type(a.atttypid, a.atttypmod),
    CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END,
    CASE t.typtype WHEN 'd' THEN t.typtypmod ELSE a.atttypmod END,
    t.typtype = 'd', a.attgenerated <> '' OR a.attidentity = 'a'
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped";

/// Columns of a unique index are NULL where it has expressions.
const UNIQUE_INDEX: &str = "
SELECT index.relname::text, i.indisvalid AND i.indisready AND i.indislive, i.indimmediate, i.indpred IS NOT NULL,
    ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS key (attnum, place)
          LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = key.attnum AND key.attnum > 0
          WHERE key.place <= i.indnkeyatts)
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class index ON index.oid = i.indexrelid
WHERE i.indrelid = to_regclass($1) AND i.indisunique";

/// Row-level triggers before INSERT, of the table and its partitions: they can discard rows.
const DISCARDING_TRIGGER: &str = "
SELECT DISTINCT t.tgname::text FROM pg_catalog.pg_trigger t
WHERE (t.tgrelid = to_regclass($1) OR t.tgrelid IN (SELECT relid FROM pg_partition_tree(to_regclass($1))))
    AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A') AND t.tgtype & 7 = 7
ORDER BY 1";

/// Name of a table with its schema.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TableName {
    schema: String,
    name: String,
}

impl TableName {
    /// Returns the name as SQL.
    fn quoted(&self) -> String {
        let quote = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// Reason why a table must not be written to.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TableFault {
    #[error("the table {TABLE} does not exist; run likesctl migrate")]
    Missing,
    #[error("{table} is {kind}; expected a permanent table")]
    Kind { table: String, kind: &'static str },
    #[error("{table} has no column {column}; expected columns user_id, post_id and created_at")]
    NoColumn { table: String, column: &'static str },
    #[error("column {column} of {table} has type {found}; expected {expected}")]
    Type { table: String, column: &'static str, found: String, expected: &'static str },
    #[error("column {column} of {table} is generated; expected a column that can be written to")]
    Generated { table: String, column: &'static str },
    #[error("{table} has no unique index on (user_id, post_id); create the primary key again")]
    NoKey { table: String },
    #[error(
        "the unique index {index} of {table} is {fault}; expected a valid index that is neither partial nor deferrable"
    )]
    Key { table: String, index: String, fault: &'static str },
}

/// Error of a verification.
#[derive(Debug, Error)]
pub enum TableError {
    #[error("cannot read the description of the table")]
    Postgres(#[from] Error),
    #[error("the table must not be written to")]
    Fault(#[from] TableFault),
}

/// Table that was verified: rows can be written to it, and its unique key absorbs duplicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    name: TableName,
    /// Whether the columns have exactly the types that are copied in binary form.
    has_exact_types: bool,
    /// Names of row-level triggers that can discard rows.
    discarding_triggers: Vec<String>,
    is_unlogged: bool,
}

impl Table {
    /// Returns whether rows may be copied directly: the types are exact, and no trigger discards rows, which would have to be
    /// told from duplicates.
    pub(super) fn allows_direct_copy(&self) -> bool {
        self.has_exact_types && !self.can_discard()
    }

    /// Returns whether a trigger can discard rows.
    pub(super) fn can_discard(&self) -> bool {
        !self.discarding_triggers.is_empty()
    }

    /// Returns the name of the table as SQL.
    pub(super) fn quoted(&self) -> String {
        self.name.quoted()
    }

    /// Returns properties of the table that are allowed and that an operator should know.
    pub fn warnings(&self) -> Vec<String> {
        let table = &self.name;
        let unlogged =
            self.is_unlogged.then(|| format!("{table} is UNLOGGED: a crash of Postgres empties it"));
        let triggers = self.discarding_triggers.join(", ");
        let discarding =
            self.can_discard().then(|| format!("{table} has triggers that can discard likes: {triggers}"));
        unlogged.into_iter().chain(discarding).collect()
    }

    /// Returns the SQL that locks the table against changes of its definition until the end of the transaction.
    pub(super) fn lock(&self) -> String {
        format!("LOCK TABLE ONLY {} IN ROW EXCLUSIVE MODE;", self.quoted())
    }
}

/// Resolves the name of the table by the search path and verifies the table. The result holds only until the table changes.
///
/// # Errors
/// Fails if the table must not be written to.
pub async fn inspect(client: &Client) -> Result<Table, TableError> {
    let relation = client.query_typed_opt(RELATION, &[(&TABLE, Type::TEXT)]).await?;
    let relation = relation.ok_or(TableFault::Missing)?;
    let name = TableName { schema: relation.try_get(0)?, name: relation.try_get(1)? };
    Ok(describe(client, &name).await?.verify()?)
}

/// Verifies a table again, without resolving its name.
pub(super) async fn inspect_again(client: &Client, table: &Table) -> Result<Table, TableError> {
    Ok(describe(client, &table.name).await?.verify()?)
}

/// Reads the description of a table.
async fn describe(client: &Client, name: &TableName) -> Result<Description, TableError> {
    let quoted = name.quoted();
    let relation = client.query_typed_opt(RELATION, &[(&quoted, Type::TEXT)]).await?;
    let relation = relation.ok_or(TableFault::Missing)?;
    let mut columns = Vec::new();
    for row in client.query_typed(COLUMN, &[(&quoted, Type::TEXT)]).await? {
        columns.push(Column {
            name: row.try_get(0)?,
            type_name: row.try_get(1)?,
            base_type: row.try_get(2)?,
            modifier: row.try_get(3)?,
            is_domain: row.try_get(4)?,
            is_generated: row.try_get(5)?,
        });
    }
    let mut unique_indexes = Vec::new();
    for row in client.query_typed(UNIQUE_INDEX, &[(&quoted, Type::TEXT)]).await? {
        unique_indexes.push(UniqueIndex {
            name: row.try_get(0)?,
            is_valid: row.try_get(1)?,
            is_immediate: row.try_get(2)?,
            is_partial: row.try_get(3)?,
            columns: row.try_get(4)?,
        });
    }
    let triggers = client.query_typed(DISCARDING_TRIGGER, &[(&quoted, Type::TEXT)]).await?;
    let persistence: String = relation.try_get(3)?;
    Ok(Description {
        name: name.clone(),
        kind: relation.try_get(2)?,
        is_temporary: persistence == "t",
        is_unlogged: persistence == "u" || relation.try_get(4)?,
        columns,
        unique_indexes,
        discarding_triggers: triggers.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?,
    })
}

/// Description of a table as read from the catalogs.
#[derive(Clone, Debug)]
struct Description {
    name: TableName,
    /// `pg_class.relkind`.
    kind: String,
    is_temporary: bool,
    is_unlogged: bool,
    columns: Vec<Column>,
    unique_indexes: Vec<UniqueIndex>,
    discarding_triggers: Vec<String>,
}

#[derive(Clone, Debug)]
struct Column {
    name: String,
    type_name: String,
    /// Type, or the base type of a domain.
    base_type: u32,
    /// Type modifier, such as precision and scale; -1 for none.
    modifier: i32,
    is_domain: bool,
    is_generated: bool,
}

#[derive(Clone, Debug)]
struct UniqueIndex {
    name: String,
    is_valid: bool,
    is_immediate: bool,
    is_partial: bool,
    /// Key columns; `None` for an expression.
    columns: Vec<Option<String>>,
}

impl Description {
    /// Verifies that rows can be written to the table and that its key absorbs duplicates.
    fn verify(self) -> Result<Table, TableFault> {
        self.verify_kind()?;
        let mut has_exact_types = true;
        for (name, expected, type_name) in &COLUMNS {
            has_exact_types &= self.has_exact_type(name, expected, type_name)?;
        }
        self.verify_key()?;
        let Self { name, discarding_triggers, is_unlogged, .. } = self;
        Ok(Table { name, has_exact_types, discarding_triggers, is_unlogged })
    }

    fn verify_kind(&self) -> Result<(), TableFault> {
        let kind = match self.kind.as_str() {
            "r" | "p" if self.is_temporary => "a temporary table",
            "r" | "p" => return Ok(()),
            "v" => "a view",
            "m" => "a materialized view",
            "f" => "a foreign table",
            _ => "not a table",
        };
        Err(TableFault::Kind { table: self.name.to_string(), kind })
    }

    /// Returns whether a column has exactly the expected type. Other types are allowed if Postgres converts every value
    /// without loss or with an error: a value that does not fit is a fault of its row.
    fn has_exact_type(
        &self,
        name: &'static str,
        expected: &Type,
        type_name: &'static str,
    ) -> Result<bool, TableFault> {
        let table = || self.name.to_string();
        let Some(column) = self.columns.iter().find(|column| column.name == name) else {
            return Err(TableFault::NoColumn { table: table(), column: name });
        };
        if column.is_generated {
            return Err(TableFault::Generated { table: table(), column: name });
        }
        let found = Type::from_oid(column.base_type);
        if found.as_ref() == Some(expected) {
            return Ok(!column.is_domain && column.modifier == -1);
        }
        let is_lossless = *expected == Type::INT8
            && match found {
                Some(Type::INT2 | Type::INT4) => true,
                Some(Type::NUMERIC) => numeric_scale(column.modifier) >= 0,
                _ => false,
            };
        if is_lossless {
            Ok(false)
        } else {
            let found = column.type_name.clone();
            Err(TableFault::Type { table: table(), column: name, found, expected: type_name })
        }
    }

    /// Requires a unique index on exactly the pair that is valid, immediate and complete.
    fn verify_key(&self) -> Result<(), TableFault> {
        let table = self.name.to_string();
        let mut unfit = None;
        for index in self.unique_indexes.iter().filter(|index| index.is_on_the_pair()) {
            match index.fault() {
                None => return Ok(()),
                Some(fault) => unfit = Some((index.name.clone(), fault)),
            }
        }
        Err(match unfit {
            Some((index, fault)) => TableFault::Key { table, index, fault },
            None => TableFault::NoKey { table },
        })
    }
}

impl UniqueIndex {
    fn is_on_the_pair(&self) -> bool {
        let mut columns: Vec<_> = self.columns.iter().map(Option::as_deref).collect();
        columns.sort_unstable();
        columns == [Some("post_id"), Some("user_id")]
    }

    fn fault(&self) -> Option<&'static str> {
        if !self.is_valid {
            Some("invalid")
        } else if !self.is_immediate {
            Some("deferrable")
        } else if self.is_partial {
            Some("partial")
        } else {
            None
        }
    }
}

/// Returns the scale of a `numeric` with this type modifier; a negative scale rounds integers.
fn numeric_scale(modifier: i32) -> i32 {
    if modifier < 0 {
        return 0;
    }
    // The lowest eleven bits, sign-extended, of the modifier less four.
    (((modifier - 4) & 0x7ff) ^ 1024) - 1024
}

#[cfg(test)]
mod tests;
