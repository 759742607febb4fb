// SPDX-License-Identifier: MIT
// A kernel module of the tests: holds the contiguous memory (CMA), all but half a MiB, while it is loaded.
#include <linux/dma-mapping.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/sizes.h>
#include <linux/slab.h>

struct piece {
	struct list_head link;
	void *address;
	dma_addr_t bus;
	size_t size;
};

static LIST_HEAD(pieces);
static struct platform_device *holder;

static void let_go(struct piece *piece)
{
	list_del(&piece->link);
	dma_free_coherent(&holder->dev, piece->size, piece->address, piece->bus);
	kfree(piece);
}

/* False where it came from elsewhere: small pieces do once contiguous memory is short. */
static bool take(size_t size)
{
	struct piece *piece = kzalloc(sizeof(*piece), GFP_KERNEL);
	unsigned long before = global_zone_page_state(NR_FREE_CMA_PAGES);

	if (!piece)
		return false;
	piece->size = size;
	piece->address = dma_alloc_coherent(&holder->dev, size, &piece->bus, GFP_KERNEL | __GFP_NOWARN);
	if (!piece->address) {
		kfree(piece);
		return false;
	}
	list_add(&piece->link, &pieces);
	if (before - global_zone_page_state(NR_FREE_CMA_PAGES) < size / PAGE_SIZE / 2) {
		let_go(piece);
		return false;
	}
	return true;
}

static int __init start(void)
{
	size_t size;

	holder = platform_device_register_simple("npu-bsp-holder", PLATFORM_DEVID_NONE, NULL, 0);
	if (IS_ERR(holder))
		return PTR_ERR(holder);
	dma_coerce_mask_and_coherent(&holder->dev, DMA_BIT_MASK(32));
	for (size = SZ_8M; size >= SZ_512K; size /= 2)
		while (take(size))
			;
	return 0;
}

static void __exit end(void)
{
	struct piece *piece, *next;

	list_for_each_entry_safe(piece, next, &pieces, link)
		let_go(piece);
	platform_device_unregister(holder);
}

module_init(start);
module_exit(end);
MODULE_DESCRIPTION("holds contiguous memory, for npu-bsp's tests");
MODULE_LICENSE("Dual MIT/GPL");
