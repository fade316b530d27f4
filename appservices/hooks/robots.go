package hooks

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/tidwall/gjson"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// The robots of 企业微信, 钉钉 and 飞书: what posts to one of them today only changes its URL, so answers are in their words. All
// of them answer 200 to what they refuse.

// robotAnswer is what 企业微信 and 钉钉 answer.
type robotAnswer struct {
	ErrCode int    `json:"errcode"`
	ErrMsg  string `json:"errmsg"`
}

var robotDone = robotAnswer{0, "ok"}

// feishuAnswer is what 飞书 answers: in the form of today and that of before.
type feishuAnswer struct {
	Code          int            `json:"code"`
	Msg           string         `json:"msg"`
	Data          map[string]any `json:"data"`
	StatusCode    int            `json:"StatusCode"`
	StatusMessage string         `json:"StatusMessage"`
}

var feishuDone = feishuAnswer{0, "success", map[string]any{}, 0, "success"}

func failWeCom(e *mxerr.Error) any {
	code := 40058 // invalid request parameter
	switch {
	case e.Status == http.StatusUnauthorized:
		code = 93000
	case e.Status == http.StatusTooManyRequests:
		code = 45009
	case e.Status == http.StatusRequestEntityTooLarge:
		code = 45002
	case e.Code == "M_NOT_JSON":
		code = 47001
	case e.Status >= http.StatusInternalServerError:
		code = -1
	}
	return robotAnswer{code, e.Message}
}

func failDingTalk(e *mxerr.Error) any {
	code := 400
	switch {
	case e.Status == http.StatusUnauthorized:
		code = 310000
	case e.Status == http.StatusTooManyRequests:
		code = 410100
	case e.Code == "M_BAD_JSON" || e.Code == "M_NOT_JSON":
		code = 40035
	case e.Status >= http.StatusInternalServerError:
		code = -1
	}
	return robotAnswer{code, e.Message}
}

func failFeishu(e *mxerr.Error) any {
	code := 19002 // params error
	switch {
	case e.Status == http.StatusUnauthorized:
		code = 19021
	case e.Status == http.StatusTooManyRequests:
		code = 11232
	case e.Code == "M_BAD_JSON" || e.Code == "M_NOT_JSON" || e.Status == http.StatusRequestEntityTooLarge:
		code = 9499
	case e.Status >= http.StatusInternalServerError:
		code = 11246
	}
	return feishuAnswer{code, e.Message, map[string]any{}, code, e.Message}
}

// object reads a robot's post; its fields are looked at as they come.
func object(in *input) (gjson.Result, error) {
	raw, err := decode[jsontext.Value](in.body)
	return gjson.ParseBytes(raw), err
}

// need is the text at a path, which must be there.
func need(g gjson.Result, path string) (string, error) {
	v := g.Get(path)
	if pointer := "/" + strings.ReplaceAll(path, ".", "/"); v.Type != gjson.String {
		return "", badField(pointer, "is missing or no string")
	} else if v.Str == "" {
		return "", badField(pointer, "is empty")
	}
	return v.Str, nil
}

func texts(v gjson.Result) []string {
	var out []string
	for _, x := range v.Array() {
		out = append(out, x.String())
	}
	return out
}

// call adds whom a robot's post mentions.
func (m *message) call(list []string) {
	for _, who := range list {
		if who == "@all" || who == "all" {
			m.MentionRoom = true
		} else if who != "" {
			m.Mentions = append(m.Mentions, who)
		}
	}
}

var weComAt = regexp.MustCompile(`<@([A-Za-z0-9._@-]+)>`)

func parseWeCom(in *input) ([]message, error) {
	g, err := object(in)
	if err != nil {
		return nil, err
	}
	var m message
	switch kind := g.Get("msgtype").String(); kind {
	case "text":
		m.Text, err = need(g, "text.content")
		m.call(texts(g.Get("text.mentioned_list")))
		m.call(texts(g.Get("text.mentioned_mobile_list")))
	case "markdown", "markdown_v2":
		m.Markdown, err = need(g, kind+".content")
		m.Markdown = weComAt.ReplaceAllStringFunc(m.Markdown, func(s string) string {
			who := s[2 : len(s)-1]
			m.call([]string{who})
			return "@" + who
		})
	case "image":
		var data string
		if data, err = need(g, "image.base64"); err == nil {
			a := attachment{Name: "image", at: "/image"}
			if a.Data, err = decodeBase64(data); err != nil {
				err = badField("/image/base64", "is not base64")
			}
			m.Attachments = []attachment{a}
		}
	case "news":
		for i, a := range g.Get("news.articles").Array() {
			if a.Get("title").String() == "" {
				return nil, badField(fmt.Sprintf("/news/articles/%d/title", i), "is missing")
			}
			m.Markdown += card(a.Get("title").String(), a.Get("description").String(), a.Get("url").String())
		}
		if m.Markdown == "" {
			err = badField("/news/articles", "is empty")
		}
	case "template_card":
		m.Markdown, err = weComCard(g.Get("template_card"))
	case "file", "voice":
		err = badField("/msgtype", "is %q: files have to be posted as image, or by the generic format's attachments", kind)
	default:
		err = badField("/msgtype", "is %q; text, markdown, markdown_v2, image, news or template_card was expected", kind)
	}
	return []message{m}, err
}

// card is a title that leads somewhere, and a text.
func card(title, text, url string) string {
	out := "**" + link(title, url) + "**\n\n"
	if text != "" {
		out += escapeMarkdown(text) + "\n\n"
	}
	return out
}

func weComCard(c gjson.Result) (string, error) {
	title := c.Get("main_title.title").String()
	if title == "" {
		title = c.Get("sub_title_text").String()
	}
	if title == "" {
		return "", badField("/template_card/main_title/title", "is missing")
	}
	out := card(title, c.Get("main_title.desc").String(), c.Get("card_action.url").String())
	if v := c.Get("emphasis_content"); v.Exists() {
		out += "**" + escapeMarkdown(v.Get("title").String()) + "** " + escapeMarkdown(v.Get("desc").String()) + "\n\n"
	}
	if s := c.Get("sub_title_text").String(); s != title && s != "" {
		out += escapeMarkdown(s) + "\n\n"
	}
	if s := c.Get("quote_area.quote_text").String(); s != "" {
		out += "> " + strings.ReplaceAll(escapeMarkdown(s), "\n", "\n> ") + "\n\n"
	}
	for _, l := range c.Get("horizontal_content_list").Array() {
		out += "- " + escapeMarkdown(l.Get("keyname").String()) + ": " + link(l.Get("value").String()+" ", l.Get("url").String()) + "\n"
	}
	for _, l := range c.Get("jump_list").Array() {
		out += "\n" + link(l.Get("title").String(), l.Get("url").String())
	}
	return out, nil
}

func parseDingTalk(in *input) ([]message, error) {
	g, err := object(in)
	if err != nil {
		return nil, err
	}
	var m message
	switch kind := g.Get("msgtype").String(); kind {
	case "text":
		m.Text, err = need(g, "text.content")
	case "markdown":
		m.Title = g.Get("markdown.title").String()
		m.Markdown, err = need(g, "markdown.text")
	case "link":
		var title, url string
		if title, err = need(g, "link.title"); err == nil {
			if url, err = need(g, "link.messageUrl"); err == nil {
				m.Markdown = card(title, g.Get("link.text").String(), url)
			}
		}
	case "actionCard":
		m.Title = g.Get("actionCard.title").String()
		m.Markdown, err = need(g, "actionCard.text")
		links := []string{}
		if t := g.Get("actionCard.singleTitle").String(); t != "" {
			links = append(links, link(t, g.Get("actionCard.singleURL").String()))
		}
		for _, b := range g.Get("actionCard.btns").Array() {
			links = append(links, link(b.Get("title").String(), b.Get("actionURL").String()))
		}
		m.Markdown += "\n\n" + strings.Join(links, " · ")
	case "feedCard":
		for i, l := range g.Get("feedCard.links").Array() {
			if l.Get("title").String() == "" {
				return nil, badField(fmt.Sprintf("/feedCard/links/%d/title", i), "is missing")
			}
			m.Markdown += "- " + link(l.Get("title").String(), l.Get("messageURL").String()) + "\n"
		}
		if m.Markdown == "" {
			err = badField("/feedCard/links", "is empty")
		}
	default:
		err = badField("/msgtype", "is %q; text, markdown, link, actionCard or feedCard was expected", kind)
	}
	m.call(texts(g.Get("at.atUserIds")))
	m.call(texts(g.Get("at.atMobiles")))
	m.MentionRoom = m.MentionRoom || g.Get("at.isAtAll").Bool()
	m.Idempotency = g.Get("msgUuid").String()
	return []message{m}, err
}

var feishuAt = regexp.MustCompile(`<at\s+(?:user_id|id|email)\s*=\s*"?([^">\s]+)"?\s*>([^<]*)</at>`)

// ats takes the mentions out of 飞书's text.
func (m *message) ats(s string) string {
	return feishuAt.ReplaceAllStringFunc(s, func(tag string) string {
		found := feishuAt.FindStringSubmatch(tag)
		m.call(found[1:2])
		if found[1] == "all" {
			return "@room"
		}
		if found[2] != "" {
			return "@" + strings.TrimPrefix(found[2], "@")
		}
		return "@" + found[1]
	})
}

func parseFeishu(in *input) ([]message, error) {
	g, err := object(in)
	if err != nil {
		return nil, err
	}
	m := message{Idempotency: g.Get("uuid").String()}
	content := g.Get("content")
	if content.Type == gjson.String { // some senders encode it twice
		content = gjson.Parse(content.Str)
	}
	switch kind := g.Get("msg_type").String(); kind {
	case "text":
		text := content.Get("text")
		if text.Type != gjson.String || text.Str == "" {
			return nil, badField("/content/text", "is missing or no string")
		}
		m.Text = m.ats(text.Str)
	case "post":
		post := content.Get("post")
		if !post.Exists() {
			post = content
		}
		lang := post.Get("zh_cn")
		if !lang.Exists() {
			post.ForEach(func(_, v gjson.Result) bool { // any language is better than none
				lang = v
				return false
			})
		}
		if !lang.Get("content").IsArray() {
			return nil, badField("/content/post/zh_cn/content", "is missing or no array")
		}
		m.Title = lang.Get("title").String()
		m.Markdown = m.feishuPost(lang.Get("content"))
	case "interactive":
		c := g.Get("card")
		if !c.IsObject() {
			return nil, badField("/card", "is missing or no object")
		}
		m.Title = c.Get("header.title.content").String()
		elements := c.Get("elements")
		if !elements.Exists() {
			elements = c.Get("body.elements")
		}
		if !elements.Exists() {
			elements = c.Get("i18n_elements.zh_cn")
		}
		m.Markdown = strings.TrimSpace(m.feishuElements(elements, 0))
		if m.Title == "" && m.Markdown == "" {
			return nil, badField("/card/elements", "hold nothing that can be shown")
		}
	case "image", "share_chat":
		return nil, badField("/msg_type", "is %q, which only names what lies at 飞书; text, post or interactive was expected", kind)
	default:
		return nil, badField("/msg_type", "is %q; text, post or interactive was expected", kind)
	}
	return []message{m}, nil
}

func (m *message) feishuPost(lines gjson.Result) string {
	var out []string
	for _, line := range lines.Array() {
		var b strings.Builder
		for _, e := range line.Array() {
			switch e.Get("tag").String() {
			case "text":
				b.WriteString(escapeMarkdown(e.Get("text").String()))
			case "md":
				b.WriteString(m.ats(e.Get("text").String()))
			case "a":
				b.WriteString(link(e.Get("text").String(), e.Get("href").String()))
			case "at":
				who := e.Get("user_id").String()
				m.call([]string{who})
				if name := e.Get("user_name").String(); name != "" {
					who = name
				}
				b.WriteString("@" + escapeMarkdown(who))
			case "code_block":
				b.WriteString("\n```" + strings.ToLower(e.Get("language").String()) + "\n" + e.Get("text").String() + "\n```\n")
			case "hr":
				b.WriteString("\n\n---\n")
			}
		}
		out = append(out, b.String())
	}
	return strings.Join(out, "\n")
}

const maxCardDepth = 8

// feishuElements makes Markdown of a card's elements.
func (m *message) feishuElements(list gjson.Result, depth int) string {
	if depth > maxCardDepth {
		return ""
	}
	said := func(t gjson.Result) string {
		switch tag := t.Get("tag").String(); {
		case tag == "lark_md" || tag == "markdown":
			return m.ats(t.Get("content").String())
		default:
			return escapeMarkdown(t.Get("content").String())
		}
	}
	var b strings.Builder
	for _, e := range list.Array() {
		switch e.Get("tag").String() {
		case "markdown":
			b.WriteString(m.ats(e.Get("content").String()) + "\n\n")
		case "plain_text", "lark_md":
			b.WriteString(said(e) + "\n\n")
		case "div":
			if t := e.Get("text"); t.Exists() {
				b.WriteString(said(t) + "\n\n")
			}
			for _, f := range e.Get("fields").Array() {
				b.WriteString(said(f.Get("text")) + "\n")
			}
			b.WriteString("\n")
		case "hr":
			b.WriteString("---\n\n")
		case "note", "column", "form", "interactive_container", "collapsible_panel":
			b.WriteString(m.feishuElements(e.Get("elements"), depth+1))
		case "column_set":
			b.WriteString(m.feishuElements(e.Get("columns"), depth+1))
		case "action":
			b.WriteString(m.feishuElements(e.Get("actions"), depth+1))
		case "button":
			url := e.Get("url").String()
			if url == "" {
				url = e.Get("behaviors.0.default_url").String()
			}
			if safeURL([]byte(url)) {
				b.WriteString(link(e.Get("text.content").String(), url) + "\n")
			}
		}
	}
	return b.String()
}
