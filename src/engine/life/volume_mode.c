/* SPDX-License-Identifier: BSD-3-Clause */
/* volume_mode.c - the switch of a volume's mode (mode.c has the argument). */
#include "engine/life/life.h"

int volume_set_mode(struct volume *v, enum cache_mode mode, struct bc_error *err)
{
	int rc = volume_record_mode(v, mode, err);

	if (rc)
		return bc_fail_prefix(err, "volume %s", v->name);
	volume_clean_soon(v);
	return 0;
}
