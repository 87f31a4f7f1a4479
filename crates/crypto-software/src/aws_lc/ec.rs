//! New elliptic-curve keys.

use aws_lc_sys as ffi;
use crypto::SecretBytes;
use domain::algorithm::Curve;
use std::ptr::null_mut;

super::owned!(EcKey, ffi::EC_KEY, ffi::EC_KEY_free);

/// A new key: scalar ‖ uncompressed point, each of the curve's fixed length.
pub(crate) fn generate_ec(curve: Curve) -> Option<SecretBytes> {
    let name = match curve {
        Curve::P256 => ffi::NID_X9_62_prime256v1,
        Curve::P256K => ffi::NID_secp256k1,
        Curve::P384 => ffi::NID_secp384r1,
        Curve::P521 => ffi::NID_secp521r1,
    };
    let key = EcKey::from_raw(
        // SAFETY: a constant; a null result is caught.
        unsafe { ffi::EC_KEY_new_by_curve_name(name) },
    )?;
    // SAFETY: the key is live.
    if unsafe { ffi::EC_KEY_generate_key(key.0.as_ptr()) } != 1 {
        return None;
    }
    let scalar_bytes = curve.coordinate_bytes();
    let point_bytes = 2 * scalar_bytes + 1;
    let mut material = SecretBytes::zeroed(scalar_bytes + point_bytes);
    let (scalar, point) = material.danger_expose_mut().split_at_mut(scalar_bytes);
    // SAFETY: the key is live and has both halves; what is borrowed from it is used while it is. Pointers and lengths are
    // live slices', and the library writes no more.
    let written = unsafe {
        ffi::BN_bn2bin_padded(scalar.as_mut_ptr(), scalar.len(), ffi::EC_KEY_get0_private_key(key.0.as_ptr()))
            == 1
            && ffi::EC_POINT_point2oct(
                ffi::EC_KEY_get0_group(key.0.as_ptr()),
                ffi::EC_KEY_get0_public_key(key.0.as_ptr()),
                ffi::point_conversion_form_t::POINT_CONVERSION_UNCOMPRESSED,
                point.as_mut_ptr(),
                point.len(),
                null_mut(),
            ) == point_bytes
    };
    written.then_some(material)
}
