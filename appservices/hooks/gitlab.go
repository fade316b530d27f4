package hooks

import (
	"fmt"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/tidwall/gjson"
)

// parseGitLab makes messages of GitLab's webhooks. What happens to one issue or merge request is a thread, and a pipeline is one
// message that changes.
func parseGitLab(in *input) ([]message, error) {
	raw, err := decode[jsontext.Value](in.body)
	if err != nil {
		return nil, err
	}
	g := gjson.ParseBytes(raw)
	kind := g.Get("object_kind").Str
	if kind == "" {
		kind = g.Get("event_name").Str
	}
	if kind == "" {
		return nil, badField("/object_kind", "is missing: this is no webhook of GitLab")
	}
	text := func(path string) string { return escapeMarkdown(shorten(g.Get(path).String(), 300)) }
	project := link(g.Get("project.path_with_namespace").String(), g.Get("project.web_url").String())
	who := text("user.name")
	if who == "" {
		who = text("user_name")
	}
	at := g.Get("project.id").String()
	m := message{Idempotency: in.header.Get("X-Gitlab-Event-Uuid")}
	if m.Idempotency != "" {
		m.Idempotency += "/" + kind
	}
	item := func(prefix string) string {
		return link(prefix+g.Get("object_attributes.iid").String()+" "+shorten(g.Get("object_attributes.title").String(), 200), g.Get("object_attributes.url").String())
	}
	switch kind {
	case "push", "tag_push":
		m.Markdown = gitLabPush(g, kind, who, project)
	case "issue", "work_item":
		m.Thread = "issue/" + at + "/" + g.Get("object_attributes.iid").String()
		m.Markdown = fmt.Sprintf("%s: %s — **%s** by %s", project, item("#"), done(g, "object_attributes.action", "updated"), who)
	case "merge_request":
		m.Thread = "mr/" + at + "/" + g.Get("object_attributes.iid").String()
		m.Markdown = fmt.Sprintf("%s: %s — **%s** by %s", project, item("!"), done(g, "object_attributes.action", "updated"), who)
		if a := g.Get("object_attributes.action").Str; a == "open" {
			m.Markdown += fmt.Sprintf(" (`%s` → `%s`)", code(g, "object_attributes.source_branch"), code(g, "object_attributes.target_branch"))
		}
	case "note":
		on := strings.ToLower(g.Get("object_attributes.noteable_type").String())
		for _, t := range []struct{ field, thread, sign string }{{"issue", "issue", "#"}, {"merge_request", "mr", "!"}} {
			if iid := g.Get(t.field + ".iid"); iid.Exists() {
				m.Thread = t.thread + "/" + at + "/" + iid.String()
				on = t.sign + iid.String()
			}
		}
		m.Markdown = fmt.Sprintf("%s: %s %s\n\n> %s", project, who, link("commented on "+on, g.Get("object_attributes.url").String()),
			strings.ReplaceAll(escapeMarkdown(shorten(g.Get("object_attributes.note").String(), 2000)), "\n", "\n> "))
	case "pipeline":
		m.Key = "pipeline/" + at + "/" + g.Get("object_attributes.id").String()
		url := g.Get("object_attributes.url").String()
		if url == "" {
			url = g.Get("project.web_url").String() + "/-/pipelines/" + g.Get("object_attributes.id").String()
		}
		status := g.Get("object_attributes.status").String()
		m.Markdown = fmt.Sprintf("%s %s: %s of `%s` by %s — **%s**", sign(status), project, link("pipeline #"+g.Get("object_attributes.id").String(), url),
			code(g, "object_attributes.ref"), who, escapeMarkdown(status))
	case "build", "job":
		status := g.Get("build_status").String()
		m.Key = "job/" + g.Get("project_id").String() + "/" + g.Get("build_id").String()
		m.Markdown = fmt.Sprintf("%s %s: job **%s** of `%s` — **%s**", sign(status), text("project_name"), text("build_name"), code(g, "ref"), escapeMarkdown(status))
	case "release":
		m.Markdown = fmt.Sprintf("🏷️ %s: release %s — **%s**", project, link(g.Get("name").String(), g.Get("url").String()), done(g, "action", "published"))
	case "deployment":
		status := g.Get("status").String()
		m.Key = "deployment/" + at + "/" + g.Get("deployment_id").String()
		m.Markdown = fmt.Sprintf("%s %s: deployment to **%s** — **%s**", sign(status), project, text("environment"), escapeMarkdown(status))
	case "wiki_page":
		m.Markdown = fmt.Sprintf("%s: wiki page %s — **%s** by %s", project, link(g.Get("object_attributes.title").String(), g.Get("object_attributes.url").String()), done(g, "object_attributes.action", "updated"), who)
	default:
		m.Markdown = fmt.Sprintf("%s: %s %s", project, escapeMarkdown(shorten(kind, 100)), who)
	}
	return []message{m}, nil
}

const shownCommits = 8

func gitLabPush(g gjson.Result, kind, who, project string) string {
	ref := strings.TrimPrefix(strings.TrimPrefix(g.Get("ref").String(), "refs/heads/"), "refs/tags/")
	ref = "`" + strings.ReplaceAll(shorten(ref, 200), "`", "'") + "`"
	gone := strings.Trim(g.Get("after").String(), "0") == ""
	what := "branch"
	if kind == "tag_push" {
		what = "tag"
	}
	switch {
	case gone:
		return fmt.Sprintf("%s: %s removed the %s %s", project, who, what, ref)
	case kind == "tag_push":
		return fmt.Sprintf("%s: %s pushed the tag %s", project, who, ref)
	}
	out := fmt.Sprintf("%s: %s pushed %d commits to %s\n", project, who, g.Get("total_commits_count").Int(), ref)
	for i, c := range g.Get("commits").Array() {
		if i == shownCommits {
			break
		}
		title := c.Get("title").String()
		if title == "" {
			title, _, _ = strings.Cut(c.Get("message").String(), "\n")
		}
		out += "\n- " + link(shorten(c.Get("id").String(), 8), c.Get("url").String()) + " " + escapeMarkdown(shorten(title, 200))
	}
	return out
}

// link makes Markdown of a text that leads somewhere.
func link(text, url string) string {
	if text == "" {
		text = "GitLab"
	}
	if !safeURL([]byte(url)) || strings.ContainsAny(url, "<>\n") {
		return escapeMarkdown(text)
	}
	return "[" + escapeMarkdown(text) + "](<" + url + ">)"
}

func code(g gjson.Result, path string) string {
	return strings.ReplaceAll(shorten(g.Get(path).String(), 200), "`", "'")
}

// done is what was done: GitLab's "open" and "close" as people say it.
func done(g gjson.Result, path, usual string) string {
	switch a := g.Get(path).String(); a {
	case "":
		return usual
	case "open", "reopen":
		return a + "ed"
	case "close", "update", "merge", "create", "delete", "approve":
		return a + "d"
	default:
		return escapeMarkdown(shorten(a, 50))
	}
}

func sign(status string) string {
	switch status {
	case "success":
		return "✅"
	case "failed":
		return "❌"
	case "canceled", "skipped":
		return "⏹️"
	default:
		return "⏳"
	}
}
