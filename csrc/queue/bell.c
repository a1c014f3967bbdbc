/*
 * The list of armed bells.  The lock is taken only where a bell is armed, disarmed or rung; it is
 * held while a bell rings, so that disarming waits for the end of it.
 */
#include "pyreactor/bell.h"

int pr_bell_list_init(struct pr_bell_list *list)
{
    *list = (struct pr_bell_list){0};
    return -pthread_mutex_init(&list->lock, NULL);
}

void pr_bell_list_deinit(struct pr_bell_list *list)
{
    pthread_mutex_destroy(&list->lock);
}

void pr_bell_arm(struct pr_bell_list *list, struct pr_bell *bell)
{
    pthread_mutex_lock(&list->lock);
    if (!bell->armed) {
        bell->armed = true;
        bell->next = NULL;
        if (list->last)
            list->last->next = bell;
        else
            list->first = bell;
        list->last = bell;
        /* Pairs with the load in pr_bell_ring(). */
        atomic_fetch_add_explicit(&list->count, 1, memory_order_seq_cst);
    }
    pthread_mutex_unlock(&list->lock);
}

/* Takes `bell`, the one after `previous` (NULL: the first), out of the list. */
static void unlink_bell(struct pr_bell_list *list, struct pr_bell *previous, struct pr_bell *bell)
{
    if (previous)
        previous->next = bell->next;
    else
        list->first = bell->next;
    if (list->last == bell)
        list->last = previous;
    bell->armed = false;
    atomic_fetch_sub_explicit(&list->count, 1, memory_order_seq_cst);
}

bool pr_bell_disarm(struct pr_bell_list *list, struct pr_bell *bell)
{
    pthread_mutex_lock(&list->lock);
    bool armed = bell->armed;
    if (armed) {
        struct pr_bell *previous = NULL;
        struct pr_bell *found = list->first;
        while (found != bell) {
            previous = found;
            found = found->next;
        }
        unlink_bell(list, previous, bell);
    }
    pthread_mutex_unlock(&list->lock);
    return armed;
}

void pr_bell_ring_armed(struct pr_bell_list *list, size_t max)
{
    pthread_mutex_lock(&list->lock);
    for (size_t rung = 0; rung < max && list->first; rung++) {
        struct pr_bell *bell = list->first;
        unlink_bell(list, NULL, bell);
        bell->ring(bell);
    }
    pthread_mutex_unlock(&list->lock);
}
