package bench

import (
	"math/rand/v2"
	"strconv"
	"strings"
)

// Corpus makes messages as a Chinese company with foreign partners writes them: people and rooms that are busy to very
// different degrees, words of both languages by Zipf's law, numbers, file names. The same seed gives the same messages.
type Corpus struct {
	People, Rooms int
	r             *rand.Rand
	people, rooms *rand.Zipf
	english       *rand.Zipf
	chinese       *rand.Zipf
	words         []string
	hanzi         []string
	at            int64
}

// Message is one message of a corpus.
type Message struct {
	N            int64
	Sender, Room int   // from 0
	TS           int64 // ms since 1970, growing
	Body         string
}

// NewCorpus makes a corpus of 5,000 people in 2,000 rooms.
func NewCorpus(seed uint64) *Corpus {
	r := rand.New(rand.NewPCG(seed, 2026))
	c := &Corpus{People: 5000, Rooms: 2000, r: r, at: 1_700_000_000_000}
	c.people = rand.NewZipf(r, 1.1, 20, uint64(c.People-1))
	c.rooms = rand.NewZipf(r, 1.15, 10, uint64(c.Rooms-1))
	const syllables = "ba be bo ca ce co da de di fa fo ga go ha hi ho ka ke ki la le lo ma me mo na ne no pa pe po ra re ro sa se so ta te to va ve wa we za"
	parts := strings.Fields(syllables)
	for range 30_000 {
		var w strings.Builder
		for range 1 + r.IntN(4) {
			w.WriteString(parts[r.IntN(len(parts))])
		}
		w.WriteString([]string{"", "n", "s", "r", "t", "ing", "ed", "ly"}[r.IntN(8)])
		c.words = append(c.words, w.String())
	}
	for range 20_000 {
		var w strings.Builder
		for range 1 + r.IntN(3) {
			w.WriteRune(rune(0x4e00 + int(float64(3500)*r.Float64()*r.Float64())))
		}
		c.hanzi = append(c.hanzi, w.String())
	}
	c.english = rand.NewZipf(r, 1.05, 8, uint64(len(c.words)-1))
	c.chinese = rand.NewZipf(r, 1.05, 8, uint64(len(c.hanzi)-1))
	return c
}

// English and Chinese give a word by its frequency: 0 is the most frequent one.
func (c *Corpus) English(i int) string { return c.words[i] }

// Chinese is like English.
func (c *Corpus) Chinese(i int) string { return c.hanzi[i] }

// Next makes the next message.
func (c *Corpus) Next(n int64) Message {
	c.at += int64(c.r.IntN(60_000))
	return Message{N: n, Sender: int(c.people.Uint64()), Room: int(c.rooms.Uint64()), TS: c.at, Body: c.body()}
}

func (c *Corpus) body() string {
	var b strings.Builder
	switch kind := c.r.IntN(20); {
	case kind < 12:
		for range 3 + c.r.IntN(14) {
			b.WriteString(c.hanzi[c.chinese.Uint64()])
			if c.r.IntN(6) == 0 {
				b.WriteString("，")
			}
		}
		b.WriteString("。")
	case kind < 18:
		for range 3 + c.r.IntN(16) {
			b.WriteString(c.words[c.english.Uint64()])
			b.WriteByte(' ')
		}
	case kind == 18:
		b.WriteString("订单号 SO-" + strconv.Itoa(20_250_000+c.r.IntN(10_000)) + "-" + strconv.Itoa(c.r.IntN(100_000)) + " " + c.hanzi[c.chinese.Uint64()])
	default:
		b.WriteString(c.hanzi[c.chinese.Uint64()] + "_" + c.words[c.english.Uint64()] + "_v" + strconv.Itoa(c.r.IntN(20)) + ".xlsx")
	}
	return b.String()
}
