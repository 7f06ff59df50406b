//! OpenAPI schemas of likes and batches.

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        KnownFormat, Ref, RefOr, Schema, SchemaFormat,
        schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Type},
    },
};

use super::LikeRequest;

/// OpenAPI schema of a batch. The items are parsed one by one, so no Rust type holds them.
pub(crate) enum LikeArray {}

impl ToSchema for LikeArray {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((LikeRequest::name().into_owned(), LikeRequest::schema()));
    }
}

impl PartialSchema for LikeArray {
    fn schema() -> RefOr<Schema> {
        let like = Ref::from_schema_name(LikeRequest::name());
        ArrayBuilder::new().items(like).min_items(Some(1)).into()
    }
}

pub(super) fn user_id_schema() -> Schema {
    id_schema("Id of the user. The name `userId` is also accepted", 7)
}

pub(super) fn post_id_schema() -> Schema {
    id_schema("Id of the liked post. The name `postId` is also accepted", 42)
}

fn id_schema(description: &str, example: i64) -> Schema {
    let number = ObjectBuilder::new()
        .schema_type(Type::Integer)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
        .minimum(Some(1))
        .maximum(Some(MAX_ID));
    let digits = ObjectBuilder::new().schema_type(Type::String).pattern(Some(ID_PATTERN));
    OneOfBuilder::new().item(number).item(digits).description(Some(description)).examples([example]).into()
}

/// 2^63 - 1, in utoipa's type for maximums.
const MAX_ID: isize = 0x7fff_ffff_ffff_ffff;

/// The decimal digits of 1 to 2^63 - 1.
const ID_PATTERN: &str = "^([1-9][0-9]{0,17}|[1-8][0-9]{18}|9[01][0-9]{17}|92[01][0-9]{16}|922[0-2][0-9]{15}|\
    9223[0-2][0-9]{14}|92233[0-6][0-9]{13}|922337[01][0-9]{12}|92233720[0-2][0-9]{10}|\
    922337203[0-5][0-9]{9}|9223372036[0-7][0-9]{8}|92233720368[0-4][0-9]{7}|\
    922337203685[0-3][0-9]{6}|9223372036854[0-6][0-9]{5}|92233720368547[0-6][0-9]{4}|\
    922337203685477[0-4][0-9]{3}|9223372036854775[0-7][0-9]{2}|922337203685477580[0-7])$";

pub(super) fn created_at_schema() -> Schema {
    let text = ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)));
    let milliseconds =
        ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).maximum(Some(MAX_MILLISECONDS));
    let description = "Time of the like, from the year 1970 to 9999: RFC 3339, or Unix time in milliseconds. \
                       Defaults to the time of receipt. The name `timestamp` is also accepted";
    OneOfBuilder::new()
        .item(text)
        .item(milliseconds)
        .item(ObjectBuilder::new().schema_type(Type::Null))
        .description(Some(description))
        .examples(["2026-01-31T12:00:00Z"])
        .into()
}

/// The last millisecond of the year 9999.
const MAX_MILLISECONDS: isize = 253_402_300_799_999;
