"""AES modes as their specifications write them, over a block cipher that is handed in.

The pool's keys never leave, but its CBC of one block under an iv of zeros is the bare block cipher under such a key.
With that a test can compute what the pool's other modes must give.
"""

KEY_WRAP_CHECK = b"\xa6" * 8


def xor(left, right):
    return bytes(one ^ other for one, other in zip(left, right, strict=True))


def key_wrap(encrypt_block, material, check=KEY_WRAP_CHECK):
    """RFC 3394 section 2.2.1."""
    blocks = [material[at : at + 8] for at in range(0, len(material), 8)]
    for step in range(1, 6 * len(blocks) + 1):
        index = (step - 1) % len(blocks)
        block = encrypt_block(check + blocks[index])
        check = (int.from_bytes(block[:8]) ^ step).to_bytes(8)
        blocks[index] = block[8:]
    return check + b"".join(blocks)


def gcm(encrypt_block, iv, additional, plaintext):
    """SP 800-38D section 7.1, for an iv of 12 bytes: ciphertext and tag."""
    hash_key = int.from_bytes(encrypt_block(bytes(16)))

    def keystream(counter, length):
        return encrypt_block(iv + counter.to_bytes(4))[:length]

    chunks = [plaintext[at : at + 16] for at in range(0, len(plaintext), 16)]
    ciphertext = b"".join(
        xor(chunk, keystream(number, len(chunk))) for number, chunk in enumerate(chunks, start=2)
    )
    lengths = (8 * len(additional)).to_bytes(8) + (8 * len(ciphertext)).to_bytes(8)
    digest = 0
    hashed = whole_blocks(additional) + whole_blocks(ciphertext) + lengths
    for at in range(0, len(hashed), 16):
        digest = multiply(digest ^ int.from_bytes(hashed[at : at + 16]), hash_key)
    return ciphertext, xor(digest.to_bytes(16), keystream(1, 16))


def whole_blocks(data):
    return data + bytes(-len(data) % 16)


def multiply(left, right):
    """In the field of GCM (SP 800-38D section 6.3)."""
    product = 0
    for bit in range(127, -1, -1):
        if left >> bit & 1:
            product ^= right
        right = right >> 1 ^ (0xE1 << 120 if right & 1 else 0)
    return product
