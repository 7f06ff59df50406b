use super::*;

fn column(name: &str, base_type: &Type) -> Column {
    Column {
        name: name.to_owned(),
        type_name: base_type.to_string(),
        base_type: base_type.oid(),
        modifier: -1,
        is_domain: false,
        is_generated: false,
    }
}

fn key(columns: &[Option<&str>]) -> UniqueIndex {
    UniqueIndex {
        name: "likes_pkey".to_owned(),
        is_valid: true,
        is_immediate: true,
        is_partial: false,
        columns: columns.iter().map(|column| column.map(ToOwned::to_owned)).collect(),
    }
}

/// The table that `likesctl migrate` creates.
fn migrated() -> Description {
    Description {
        name: TableName { schema: "public".to_owned(), name: "likes".to_owned() },
        kind: "r".to_owned(),
        is_temporary: false,
        is_unlogged: false,
        columns: COLUMNS.iter().map(|(name, base_type, _)| column(name, base_type)).collect(),
        unique_indexes: vec![key(&[Some("post_id"), Some("user_id")])],
        discarding_triggers: Vec::new(),
    }
}

/// Applies a change to the migrated table and verifies it.
fn changed(change: impl FnOnce(&mut Description)) -> Result<Table, String> {
    let mut description = migrated();
    change(&mut description);
    description.verify().map_err(|fault| fault.to_string())
}

#[test]
fn the_migrated_table_is_copied_to_directly() {
    let table = changed(|_| {}).unwrap();
    assert!(table.allows_direct_copy());
    assert!(table.warnings().is_empty());
    let partitioned = changed(|table| table.kind = "p".to_owned()).unwrap();
    assert!(partitioned.allows_direct_copy());
}

#[test]
fn further_columns_and_indexes_and_either_order_of_the_key_are_allowed() {
    let table = changed(|table| {
        table.columns.insert(0, column("country", &Type::TEXT));
        table.unique_indexes = vec![key(&[Some("country")]), key(&[Some("user_id"), Some("post_id")])];
    });
    assert!(table.unwrap().allows_direct_copy());
}

#[test]
fn a_type_that_converts_without_loss_is_staged_and_any_other_is_refused() {
    for (name, base_type, modifier) in [
        ("user_id", Type::INT4, -1),
        ("post_id", Type::INT2, -1),
        ("user_id", Type::NUMERIC, -1),
        ("user_id", Type::NUMERIC, (20 << 16) + 4),
        ("created_at", Type::TIMESTAMPTZ, 3),
    ] {
        let table = changed(|table| {
            let changed = table.columns.iter_mut().find(|column| column.name == name).unwrap();
            *changed = Column { modifier, ..column(name, &base_type) };
        });
        assert!(!table.unwrap().allows_direct_copy(), "{name} {base_type}");
    }
    let rounds_to_hundreds = (20 << 16) + (-2 & 0x7ff) + 4;
    for (name, base_type, modifier, expected) in [
        ("user_id", Type::FLOAT8, -1, "bigint"),
        ("user_id", Type::NUMERIC, rounds_to_hundreds, "bigint"),
        ("post_id", Type::TEXT, -1, "bigint"),
        ("created_at", Type::TIMESTAMP, -1, "timestamp with time zone"),
        ("created_at", Type::DATE, -1, "timestamp with time zone"),
        ("created_at", Type::INT8, -1, "timestamp with time zone"),
    ] {
        let fault = changed(|table| {
            let changed = table.columns.iter_mut().find(|column| column.name == name).unwrap();
            *changed = Column { modifier, ..column(name, &base_type) };
        });
        let expected = format!("column {name} of public.likes has type {base_type}; expected {expected}");
        assert_eq!(fault.unwrap_err(), expected);
    }
}

#[test]
fn a_domain_is_staged() {
    let table = changed(|table| table.columns[0].is_domain = true).unwrap();
    assert!(!table.allows_direct_copy());
}

#[test]
fn a_missing_or_generated_column_is_refused() {
    let missing = changed(|table| drop(table.columns.remove(2))).unwrap_err();
    assert!(missing.starts_with("public.likes has no column created_at;"), "{missing}");
    let generated = changed(|table| table.columns[0].is_generated = true).unwrap_err();
    assert!(generated.starts_with("column user_id of public.likes is generated;"), "{generated}");
}

#[test]
fn a_key_that_does_not_absorb_every_duplicate_is_refused() {
    type Change = fn(&mut UniqueIndex);
    let changes: [(Change, &str); 3] = [
        (|index| index.is_valid = false, "is invalid;"),
        (|index| index.is_immediate = false, "is deferrable;"),
        (|index| index.is_partial = true, "is partial;"),
    ];
    for (change, expected) in changes {
        let fault = changed(|table| change(&mut table.unique_indexes[0])).unwrap_err();
        assert!(fault.contains(expected), "{fault}");
        // A fit index beside it is enough.
        let pair = [Some("user_id"), Some("post_id")];
        let both = changed(|table| {
            change(&mut table.unique_indexes[0]);
            table.unique_indexes.push(key(&pair));
        });
        assert!(both.is_ok());
    }
    for columns in
        [&[][..], &[Some("post_id")], &[Some("post_id"), None], &[Some("post_id"), Some("user_id"), None]]
    {
        let fault = changed(|table| table.unique_indexes = vec![key(columns)]).unwrap_err();
        assert!(fault.contains("has no unique index on (user_id, post_id)"), "{fault}");
    }
}

#[test]
fn only_permanent_tables_are_written_to() {
    for (kind, expected) in [("v", "a view"), ("m", "a materialized view"), ("f", "a foreign table")] {
        let fault = changed(|table| table.kind = kind.to_owned()).unwrap_err();
        assert!(fault.starts_with(&format!("public.likes is {expected};")), "{fault}");
    }
    let fault = changed(|table| table.is_temporary = true).unwrap_err();
    assert!(fault.starts_with("public.likes is a temporary table;"), "{fault}");
}

#[test]
fn an_unlogged_table_and_discarding_triggers_are_warnings() {
    let unlogged = changed(|table| table.is_unlogged = true).unwrap();
    assert!(unlogged.warnings()[0].contains("UNLOGGED") && unlogged.allows_direct_copy());
    let filtered = changed(|table| table.discarding_triggers = vec!["spam".to_owned()]).unwrap();
    assert!(filtered.warnings()[0].ends_with("discard likes: spam") && !filtered.allows_direct_copy());
}
