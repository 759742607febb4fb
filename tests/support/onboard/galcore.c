// SPDX-License-Identifier: MIT
// A kernel module of the tests: what the vendor's driver looks like from outside. It binds itself to the NPU's
// node under the vendor's name, and drives nothing.
#include <linux/module.h>
#include <linux/of.h>
#include <linux/platform_device.h>

static int probe(struct platform_device *device)
{
	dev_info(&device->dev, "bound by the tests' galcore\n");
	return 0;
}

static const struct of_device_id nodes[] = { { .compatible = "vivante,gc" }, {} };

static struct platform_driver galcore = {
	.probe = probe,
	.driver = { .name = "galcore", .of_match_table = nodes },
};
module_platform_driver(galcore);
MODULE_DESCRIPTION("stands in for the vendor's driver in npu-bsp's tests");
MODULE_LICENSE("Dual MIT/GPL");
