/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "broker/control.h"
#include "broker/front.h"

/*
 * A reload that a client asks for is the one of SIGHUP: the spawner reads the file
 * and logs; the client gets the same lines. One client at a time; the others wait.
 */
static struct {
	bool is_asked;	/* and the spawner has not answered yet */
	uint32_t owner; /* serial of the client; 0: nobody, or it has left */
	bool is_here;	/* for the owner: */
	int error;
	char text[BANKS_TEXT_SIZE];
} answer;

static char *path; /* of the file, without links; NULL: none */

bool control_reload_init(const char *file)
{
	if (!file)
		return true;
	path = realpath(file, NULL);
	if (!path)
		path = strdup(file);
	return path;
}

/* As much as one packet takes, from a place that is the client's own. true: all was said. */
static bool say_text(struct front *front, struct control_client *client, const char *text)
{
	char part[CONTROL_TEXT_MAX + 1];
	Control__Reply reply = CONTROL__REPLY__INIT;
	Control__Text row = CONTROL__TEXT__INIT;

	row.text = part;
	reply.body_case = CONTROL__REPLY__BODY_TEXT;
	reply.text = &row;
	while (text[client->place[1]]) {
		size_t len = strnlen(text + client->place[1], CONTROL_TEXT_MAX);

		memcpy(part, text + client->place[1], len);
		part[len] = '\0';
		if (!control_send(front, client, &reply))
			return false;
		client->place[1] += (uint32_t)len;
	}
	return true;
}

static bool refuse_no_file(struct control_client *client)
{
	return control_refuse(client, -ENOTSUP,
			      "vsockd was started without --config: there is no file that could "
			      "be read again");
}

bool control_reload(struct front *front, struct control_client *client)
{
	if (!front->banks)
		return refuse_no_file(client);
	if (client->cursor == 0) {
		if (answer.is_asked || answer.owner != 0 || !front_request_reload(front))
			return false;
		answer.is_asked = true;
		answer.is_here = false;
		answer.owner = client->serial;
		client->cursor = 1;
	}
	if (!answer.is_here || !say_text(front, client, answer.text))
		return false;
	/* Why is in what was said. */
	return answer.error ? control_refuse(client, -answer.error, "%s", "") : true;
}

void control_end_reload(struct front *front, struct control_client *client)
{
	if (answer.owner != client->serial)
		return;
	answer.owner = 0;
	/* Some may have had their turn in this round already. */
	control_call(front);
}

void control_reloaded(struct front *front, int error)
{
	if (!front->control || !answer.is_asked) {
		front->exit_code = EX_SOFTWARE;
		return;
	}
	answer.is_asked = false;
	answer.is_here = true;
	answer.error = error;
	/* The next one that is asked for writes there again. */
	memcpy(answer.text, front->banks->text, sizeof(answer.text) - 1);
}

bool control_file(struct front *front, struct control_client *client)
{
	if (!front->banks)
		return refuse_no_file(client);
	return say_text(front, client, path);
}
