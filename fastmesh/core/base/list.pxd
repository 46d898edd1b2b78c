# Intrusive doubly linked lists: the node lives in its owner, so linking never allocates.
# An unlinked node has next == NULL; a list head is a node linked to itself.

cdef struct Node:
    Node *next
    Node *prev


cdef inline void list_init(Node *head) noexcept nogil:
    head.next = head
    head.prev = head


cdef inline bint list_empty(Node *head) noexcept nogil:
    return head.next == head


cdef inline bint node_linked(Node *n) noexcept nogil:
    return n.next != NULL


cdef inline void list_push(Node *head, Node *n) noexcept nogil:
    """At the front."""
    n.next = head.next
    n.prev = head
    head.next.prev = n
    head.next = n


cdef inline void list_append(Node *head, Node *n) noexcept nogil:
    """At the back."""
    n.prev = head.prev
    n.next = head
    head.prev.next = n
    head.prev = n


cdef inline void list_remove(Node *n) noexcept nogil:
    """Out of whatever list holds it; nothing if none does."""
    if n.next != NULL:
        n.next.prev = n.prev
        n.prev.next = n.next
        n.next = NULL
        n.prev = NULL
