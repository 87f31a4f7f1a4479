//! Private parsers, for fuzz targets alone.

use crate::route::RouteKind;
use crate::{api, key_import, paging, release, rotation, wire};
use domain::access::Scope;
use domain::guid::Guid;
use domain::name::{KeyName, KeyVersion};
use service::Error;

/// Reads `body` as a request of `kind` would be read; `None` where such a request has no body.
pub fn body(kind: RouteKind, body: &[u8]) -> Option<Result<(), Error>> {
    let name: KeyName = "n".parse().expect("a good name");
    let id = Guid([1; 16]);
    Some(match kind {
        RouteKind::CreateKey => wire::parse_create(name, body).map(drop),
        RouteKind::RestoreKey => wire::parse_restore(body).map(drop),
        RouteKind::ImportKey => key_import::parse(name, body).map(drop),
        RouteKind::SetRotationPolicy => rotation::parse(body).map(drop),
        RouteKind::ReleaseKey => release::parse(body).map(drop),
        RouteKind::UpdateKey => wire::parse_update(body).map(drop),
        RouteKind::Sign => wire::parse_sign(body).map(drop),
        RouteKind::Verify => wire::parse_verify(body).map(drop),
        RouteKind::Encrypt | RouteKind::WrapKey => wire::parse_encrypt(body).map(drop),
        RouteKind::Decrypt | RouteKind::UnwrapKey => wire::parse_decrypt(body).map(drop),
        RouteKind::RandomBytes => wire::parse_random(body).map(drop),
        RouteKind::CreateAssignment => wire::parse_assignment(Scope::Root, id, body).map(drop),
        RouteKind::DefineRole => wire::parse_role(id, body).map(drop),
        RouteKind::UpdateSetting => wire::parse_setting(body).map(drop),
        RouteKind::SetNotBefore => wire::parse_not_before(body).map(drop),
        RouteKind::DownloadDomain => wire::parse_download(body).map(drop),
        RouteKind::ConfirmDomain => wire::parse_confirm(body).map(drop),
        RouteKind::UploadDomain => wire::parse_upload(body).map(drop),
        _ => return None,
    })
}

pub fn query(uri: &http::Uri, name: &str) -> Option<String> {
    api::query(uri, name)
}

/// `maxresults` and `$skiptoken` of a list of keys, and of one of versions. What is read is written again, and must come
/// back the same.
pub fn page(max_results: Option<&str>, token: Option<&str>) {
    fn there_and_back<C: paging::Place + PartialEq + std::fmt::Debug>(
        max_results: Option<&str>,
        token: Option<&str>,
    ) {
        let Ok(request) = paging::page_request::<C>(max_results, token) else { return };
        assert!((1..=25).contains(&request.limit), "a page of {}", request.limit);
        if let Some(place) = request.after {
            let link = paging::next_link("https://h", "/keys", "7.6", request.limit, &place);
            let token = link.rsplit_once("$skiptoken=").map(|(_, token)| token);
            let again = paging::page_request::<C>(None, token);
            assert_eq!(again.ok().and_then(|again| again.after), Some(place));
        }
    }
    there_and_back::<KeyName>(max_results, token);
    there_and_back::<KeyVersion>(max_results, token);
}
