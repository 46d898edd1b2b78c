# The keys that session tickets are sealed with: one set in shared memory, the same for all workers.
#
# One writer (the supervisor) turns them; readers take no lock and wait for nobody. `turn` names the key that
# new tickets get; the one before it still opens tickets, which are then renewed; what is older is wiped. A new
# key is written where no reader looks before `turn` names it, so a writer that dies half way leaves nothing
# broken; a reader that was overtaken sees it by `turn` and reads again.

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcmp, memcpy

from fastmesh.core.sys.atomic cimport fm_fence, fm_load_acquire, fm_store_release
from fastmesh.core.sys.openssl cimport *

cdef enum:
    TICKET_KEYS = 4             # current, previous, one being wiped, one being written
    TICKET_CURRENT = 0

cdef struct TlsTicketKey:
    int64_t born                # seconds since 1970; 0: there is no key here
    unsigned char name[16]
    unsigned char mac[32]
    unsigned char cipher[32]

cdef struct TlsTickets:
    uint64_t turn
    TlsTicketKey keys[4]        # TICKET_KEYS


cdef inline bint tickets_key(TlsTickets *t, int age, TlsTicketKey *out) noexcept nogil:
    """A copy of the current (age 0) or previous (1) key. False: there is none."""
    cdef uint64_t turn
    cdef int i
    for i in range(4):          # overtaken more than once an hour: the writer is not ours
        turn = fm_load_acquire(&t.turn)
        memcpy(out, &t.keys[(turn - <uint64_t>age) % TICKET_KEYS], sizeof(TlsTicketKey))
        fm_fence()
        if fm_load_acquire(&t.turn) == turn:
            return out.born != 0
    return False


cdef inline bint tickets_rotate(TlsTickets *t, int64_t now) noexcept nogil:
    """A new current key; the one until now becomes the previous one. One writer only. False: no randomness."""
    cdef uint64_t turn = t.turn + 1
    cdef TlsTicketKey *key = &t.keys[turn % TICKET_KEYS]
    if RAND_bytes(key.name, sizeof(key.name)) != 1 or RAND_priv_bytes(key.mac, sizeof(key.mac)) != 1 or (
            RAND_priv_bytes(key.cipher, sizeof(key.cipher)) != 1):
        ERR_clear_error()
        return False
    key.born = now if now > 0 else 1
    fm_store_release(&t.turn, turn)
    fm_fence()
    OPENSSL_cleanse(&t.keys[(turn - 2) % TICKET_KEYS], sizeof(TlsTicketKey))
    return True


cdef inline bint _ticket_mac(EVP_MAC_CTX *mac, TlsTicketKey *key) noexcept nogil:
    cdef OSSL_PARAM params[3]
    params[0] = OSSL_PARAM_construct_octet_string(b"key", key.mac, sizeof(key.mac))
    params[1] = OSSL_PARAM_construct_utf8_string(b"digest", <char *>b"SHA256", 0)
    params[2] = OSSL_PARAM_construct_end()
    return EVP_MAC_CTX_set_params(mac, params) == 1


cdef inline int ticket_seal(
    TlsTickets *t, unsigned char *name, unsigned char *iv, EVP_CIPHER_CTX *cipher, EVP_MAC_CTX *mac
) noexcept nogil:
    """OpenSSL asks for the key of a new ticket. 1: here it is; -1: there is none."""
    cdef TlsTicketKey key
    cdef bint ok = tickets_key(t, TICKET_CURRENT, &key) and RAND_bytes(iv, 16) == 1
    if ok:
        memcpy(name, key.name, sizeof(key.name))
        ok = EVP_EncryptInit_ex(cipher, EVP_aes_256_cbc(), NULL, key.cipher, iv) == 1 and _ticket_mac(mac, &key)
    OPENSSL_cleanse(&key, sizeof(key))
    return 1 if ok else -1


cdef inline int ticket_open(
    TlsTickets *t, const unsigned char *name, unsigned char *iv, EVP_CIPHER_CTX *cipher, EVP_MAC_CTX *mac
) noexcept nogil:
    """OpenSSL asks for the key of a ticket that came. 1: current; 2: previous, renew; 0: none of ours; -1: failed."""
    cdef TlsTicketKey key
    cdef int age
    cdef int found = 0
    for age in range(2):
        if tickets_key(t, age, &key) and memcmp(name, key.name, sizeof(key.name)) == 0:
            found = age + 1
            break
    if found and not (
            EVP_DecryptInit_ex(cipher, EVP_aes_256_cbc(), NULL, key.cipher, iv) == 1 and _ticket_mac(mac, &key)):
        found = -1
    OPENSSL_cleanse(&key, sizeof(key))
    return found
