"""Everything that people ask of an assistant and that nano cannot do: questions of fact, writing,
code, translation, advice, other languages, word salad.

Wide rather than deep: the model is to learn that whatever it does not recognise is this.
"""

from __future__ import annotations

import random
import string

from ossia.train.curriculum.phrases import SLOTS, asked, expand, lines, typed


def draw_anything(rng: random.Random) -> str:
    """Sense two times out of three; else another language, code, word salad or a few letters."""
    draw = rng.random()
    if draw < 0.66:
        template = rng.choice(_REQUESTS)
        return asked(rng, expand(rng, template, year=str(rng.randrange(1000, 2040))))
    if draw < 0.76:
        return typed(rng, expand(rng, rng.choice(_FOREIGN)))
    if draw < 0.80:
        before = expand(rng, "[What does this [do|mean|print]?|Fix this:|Explain:|Why this?||||]")
        return f"{before}\n{rng.choice(_CODE)}".strip()
    if draw < 0.96:
        return typed(rng, _salad(rng))
    letters = rng.choices(string.ascii_lowercase, k=rng.randrange(3, 12))
    return rng.choice(("".join(letters), "".join(letters), *_SHORT))


def _salad(rng: random.Random) -> str:
    words = rng.choices(SLOTS["small"], k=rng.randrange(1, 8))
    for kind in ("noun", "verb", "adjective", "subject"):
        words += rng.choices(SLOTS[kind], k=rng.randrange(0, 3))
    rng.shuffle(words)
    text = " ".join(words)
    return text[0].upper() + text[1:] + rng.choice(("", ".", "?", "!"))


_REQUESTS = lines("""
What is the [capital|currency|flag|language|population|president|history|anthem|largest city|
  highest mountain|longest river] of {country}?
[Where|In which country|On which continent|How far] is {city}?
How [big|old|cold|hot|crowded|expensive|rich] is [{city}|{country}]?
How many [people|tourists|cars|trees|{animal}] [live in|are there in|visit] {city}?
[Who|What] [is|was] {person}?
[When|Where] [was {person} born|did {person} die|did {person} live|did {person} meet {person}]?
What did {person} [do|write|invent|say|discover|want|eat|think of {person}]?
Why is {person} [famous|important|so popular|in the news]?
[What|How] [is|are|about] {subject}?
[Explain|Describe|Define|Summarise|Outline] {subject}[| to a child| simply| in one line| in detail
  | step by step| like I am five| in simple words| briefly].
[How|Why|When|Where] [does|did] {subject} [work|begin|happen|matter|come from|end]?
[Tell|Teach|Show] me [something|more|everything|a bit|a fact|all you know] about [{subject}|
  {person}|{animal}|{country}|{food}|the {noun}].
[Write|Compose|Draft|Make up|Create|Invent|Give me|I need|I want|Could you write|Can you write|
  Help me write|Improvise|Finish|Please write] {piece} [about|on|for|with] [{animal}|{subject}|
  {city}|{friend}|{food}|a {adjective} {noun}|the {noun}|my {noun}].
[Write|Send|Draft] {piece} to {friend}[| about my {noun}| about {subject}| for tomorrow].
[Write|Give me|Show me|I need|Create] [a function|a program|a script|code|a class|a one-liner|
  a test|an example|a snippet|a module] in {code} [that|which] [sorts|reverses|parses|prints|reads
  |implements|finds|deletes|stores|draws] {thing}.
[How do I|How can I|How would you|What is the best way to] [sort|reverse|read|build|parse|print|
  test|write|delete|install|learn] [{thing}|{code}|{thing} in {code}]?
[Fix|Debug|Explain|Review|Optimise|Refactor|Comment|Run|Test|Rewrite] [this|my|the] [code|program|
  function|script|bug|query|{code} code|{code} program][| for me|: print(x)|: x = y|, it crashes|
  , it is slow].
[Is|Why is] {code} [better|faster|older|more popular|harder] than {code}?
[Translate|Put|Turn] [{noun}|{noun} and {noun}|the {adjective} {noun}|I {verb} you|this|my letter|
  where is the {noun}] [to|into] {language}.
How do [you|I|they] say [{noun}|hello|I {verb}|the {adjective} {noun}|thank you] in {language}?
[Do|Can] you [speak|read|understand|know|teach me] {language}?
What does [the word |]{noun} mean[| in {language}]?
[Correct|Improve|Rewrite|Shorten|Summarise|Proofread|Paraphrase|Continue|Check] [this|my] [text|
  email|paragraph|essay|letter|article][: The {adjective} {noun} was {adjective}| for me|
  : I {verb} the {noun} and you {verb} it].
[How do I|How can I|Teach me to|Show me how to|Can you] [make|cook|bake|prepare|fry|freeze|
  eat] {food}?
What [should|can|could|shall|do] [I|we] [cook|eat|wear|watch|read|do|buy|say|study|drink|play|
  give {friend}] [today|tonight|this weekend|tomorrow|in {city}|for dinner|at work|next week]?
[Recommend|Suggest|Find|Name|Pick] [a|one|me a|some] [good|new|funny|sad|short|cheap|famous] [book
  |film|game|song|hotel|restaurant|museum|wine|gift|name for my cat|podcast|laptop][| in {city}
  | for {friend}| about {subject}].
[What is|How is|Tell me|Check|How do you find] the [weather|temperature|forecast|traffic|
  wind] [like |]in {city}[| today| tomorrow| this week| now].
What [time|day|date|year|season|weekday] [is it|do we have|is it in {city}|is it now|is today]?
[Set|Start|Cancel|Stop|Change] [an alarm|a timer|a reminder|my alarm|the clock|
  a meeting] [for tomorrow|for tonight|in the morning|at noon|now|with {friend}].
[Play|Stop|Skip|Find|Sing] [some music|the song|some jazz|a lullaby|the radio|my playlist|a video|
  {piece}].
[Turn|Switch] [on|off] the [light|heating|lamp|computer|music|fan|oven|screen].
[Order|Book|Buy|Find|Get|Reserve] me [a pizza|a flight to {city}|a hotel in {city}|a ticket|a taxi
  |a table for two|{food}|a train to {city}|shoes|a doctor].
[Call|Text|Message|Invite|Remind|Wake|Greet] {friend}[| now| tomorrow| for me].
[Who|Which team|Which country|Which film] won [the World Cup|the Olympics|the election|the final|
  the match|the war|the prize|the Oscar|last night][| in {year}]?
What happened [in {year}|in {city}|yesterday|last week|to {person}|to {company}|on the news]?
Do you [like|love|hate|prefer|know|want|fear|miss|enjoy|remember|believe in] [{animal}|{subject}|
  {food}|{person}|{city}|me|music|the {noun}|a {adjective} {noun}]?
What is your [favourite|best|worst|first] [colour|film|book|food|song|animal|memory|joke|day|
  {noun}]?
What do you think [of|about] [{subject}|{person}|{city}|{company}|my {noun}|{animal}|God|us]?
[Tell|Give|Read] me [a joke|a riddle|a bedtime tale|something funny|the news|the truth|a fun fact|
  a quote|the time|your opinion|good advice|a number|a compliment|the future].
[Draw|Paint|Sketch|Show me|Generate|Make] [a picture of {animal}|a {adjective} {noun}|{animal}|
  a map of {country}|an image of {person}|a logo|a chart|a good picture of {city}].
Let us [play a game|talk about {subject}|chat about {animal}|play chess|go to {city}|sing|talk|
  discuss {subject}|make {food}|have fun].
[Pretend to be|Act like|Talk like|You are now|Play the role of|Imagine you are|
  Speak like] [{person}|a pirate|a {noun}|my aunt's cat|a king|a doctor|{friend}|a dragon].
My [{noun}|computer|phone|car|cat|dog|plant|laptop|printer|back|tooth|heart|bike] [is broken|
  is {adjective}|hurts|does not work|is gone|makes noises|is lost|died|smells]. What [now|
  should I do|can I do|helps]?
[I feel|I am|We are|{friend} is] [sad|tired|happy|lonely|bored|angry|in love|afraid|nervous|hungry
  |stressed|jealous|lost in {city}][.|. What should I do?|. Any advice?|, help me.]
[How can I|How do I|How does one|Tips to|I want to] [lose weight|sleep better|learn {language}|
  save money|find a job|make friends|get rich|stop smoking|run faster|be happy|write better|
  cook {food}|understand {subject}|meet {person}|move to {country}|{verb} a {noun}|
  {verb} the {adjective} {noun}]?
Spell [{noun}|{adjective}|{city}][| backwards| for me].
How many [letters|vowels|syllables|words] [are in|has|does it take to write] [{noun}|{city}|
  the {noun}]?
What [rhymes with|is the opposite of|is the plural of|is another word for|begins like|
  comes after] [{noun}|{adjective}|{verb}]?
[List|Name|Give me|Write down] [five|ten|some|a few|three|all] [{animal}|words with {noun}|
  {adjective} {noun}s|names for {animal}|facts about {subject}|cities in {country}|
  things to do in {city}|films with {person}|books about {subject}].
[What is the difference between|Compare|What do you prefer,|
  Tell me the link between] [{subject} and {subject}|a {noun} and a {noun}|{animal} and {animal}|
  {person} and {person}]?
[Which|What|Who] is [better|bigger|older|faster|stronger|nicer|
  more {adjective}], [{noun} or {noun}|{city} or {city}|{person} or {person}|
  {animal} or {animal}]?
Is it [true|possible|known|legal|normal|safe] that {animal} [{verb}|can {verb}|eat {food}|
  live in {country}|like {subject}]?
[Why|How|When|Where] do [{animal}|people|we|they|children|men] [{verb}|{verb} the {noun}|
  like {food}|sleep|need {subject}|eat {food}]?
Why is the {noun} [{adjective}|so {adjective}|not {adjective}|in {city}]?
[Sort|Count|Classify|Group|Shuffle|Pick one of|Join|Read] these words: {noun}, {noun}, {noun}.
[Repeat|Say|Write|Type|Print|Echo] [{noun}|the word {noun}|after me: {noun} {noun}|{noun} {noun}|
  my name|it again|that].
What is the [price|boiling point|colour|weight|symbol|meaning|taste|origin|smell|age|name|size|
  speed|purpose] of [gold|water|bitcoin|oil|life|{food}|iron|a {noun}|the {noun}|the universe|
  light]?
I have a [headache|fever|cold|meeting|dream|cat|new job|problem|date|question about {subject}|
  {adjective} {noun}][. What helps?|. What now?|.|, what do I do?]
[I went to|I live in|I was born in|I come from|We fly to|{friend} moved to] {city}[| yesterday
  | and saw a {adjective} {noun}| with {friend}| to see {person}].
[Can|Could|Will|Would] you {verb} [my|the|a|this] [{noun}|{adjective} {noun}][| for me| with me
  | in {city}]?
[Please |]{verb} [the|this|my|a] [{noun}|{adjective} {noun}][| for me| and the {noun}
  | in {language}].
[Should|May|Can|Must] [I|we|one] {verb} [the {noun}|a {noun}|{animal}|{food}|or {verb}|in {city}]?
[Is|Was] the [{noun}|{adjective} {noun}] [{adjective}|in {city}|from {country}|dead|a {noun}|
  on fire]?
[{noun}|{adjective} {noun}|{noun} {noun} {noun}|{verb} {noun}|{city}|{person}|{subject}|{food}|
  {animal}][.|?|!]
[The|A|My|This] {adjective} {noun} [{verb}s|is|has|was|likes] [the|a|my] [{adjective}|{noun}|
  {adjective} {noun}].
[Analyse|Rate|Criticise|Praise|Discuss|Interpret] [{piece}|the {noun}|{subject}|{person}|
  this {noun}|the works of {person}].
[Plan|Organise|Prepare|Schedule] [a trip to {city}|my day|a party|our wedding|a workout|
  a week in {country}|dinner for {friend}].
[What|Who] would {person} [say|do|think|eat|buy|write][| about {subject}| today| in {city}]?
[Help me with|I need help with|Can you help me with|Advise me on|I have trouble with] [my {noun}|
  {subject}|my essay on {subject}|{code}|my homework on {person}|{friend}|my taxes|
  a letter to {company}|{language}|cooking {food}].
[Search|Google|Look up|Browse|Open|Download|Check] [the web for {subject}|{person}|the news|
  my email|a website|{company}|flights to {city}|the file|my calendar].
""")  # fmt: skip

_FOREIGN = lines("""
Was ist [die Hauptstadt von Frankreich|ein Atom|der Sinn des Lebens|Liebe|das Wetter morgen|
  {noun}]?
[Schreib|Schreibe|Gib] mir [ein Gedicht|einen Brief|ein Rezept|eine Geschichte|einen Witz] [über|
  zu] [Katzen|Berlin|{city}|die Sonne].
[Warum|Wie|Wann|Wo|Woher] [ist der Himmel blau|fliegen Vögel|kommt der Zug|finde ich Arbeit|
  regnet es|lernt man Klavier]?
[Kannst du|Bitte|Könntest du] [das übersetzen|mir vorlesen|das erklären|ein Lied singen|
  den Text kürzen]?
[Quelle est la capitale de|Où se trouve|Comment aller à|Parle-moi de] [la France|l'Espagne|{city}|
  Rome]?
[Écris|Raconte|Donne]-moi [un poème|une blague|une recette|une lettre|une histoire] [sur le chat|
  pour maman|d'amour|en anglais].
[Pourquoi|Comment|Quand] [le ciel est bleu|faire du pain|part le train|apprendre le piano|
  pleut-il]?
[Cuál es la capital de|Dónde está|Cómo llego a|Qué tiempo hace en] [Francia|España|{city}|Perú]?
[Escribe|Cuéntame|Dame|Tradúceme] [un poema|un chiste|una carta|una receta|un cuento] [de gatos|
  para mi madre|de amor|en inglés].
[Por qué|Cómo|Cuándo] [el cielo es azul|hago pan|sale el tren|aprendo a cantar|llueve]?
[Qual è la capitale|Dove si trova|Che tempo fa|Scrivimi una poesia|
  Raccontami una barzelletta] [di {city}|a Roma|sul gatto|oggi]?
[Qual é a capital|Onde fica|Escreve um poema|Conta uma piada|Como se faz pão] [de {city}|do Brasil
  |sobre o mar|hoje]?
[Wat is de hoofdstad|Schrijf een gedicht|Waar ligt|Hoe laat is het|Vertel een grap] [van Nederland
  |over katten|in {city}|vandaag]?
[Co to jest|Gdzie jest|Napisz wiersz o|Dlaczego] [{city}|miasto|kot|niebo]?
[Vad är|Var ligger|Skriv en dikt om|Hvad er|Hvor er|Mikä on] [{city}|kärlek|en katt|vejret|
  pääkaupunki]?
[Nerede|Bana bir şiir yaz|Hava nasıl|Saat kaç|Ne demek] [{city}|bugün|sevgi]?
[Що таке|Что такое|Где находится|Напиши стихи про|Почему] [любовь|Москва|кот|небо|{city}]?
[什么是|请写一首关于|为什么|翻译] [爱|猫的诗|天空|{city}]?
[教えて|なぜ|詩を書いて|天気は] [東京|猫|空|{city}]?
[ما هي|أين|اكتب قصيدة عن|لماذا] [السماء|القطة|{city}]?
[क्या है|कहाँ है|कविता लिखो] [प्यार|दिल्ली|{city}]?
[Quid est|Ubi est|Dic mihi de|Scribe carmen de] [amor|Roma|veritas|{city}]?
[Kio estas|Kie estas|Mi volas] [amo|la urbo|{city}|dormi]?
[사랑이 뭐야|서울 날씨|시를 써줘|왜 그래]?
""")  # fmt: skip

_SHORT = (
    "why?", "what?", "really?", "lol", "maybe", "no", "yes", "...", "?", "!", "hm", "go on",
    "and?", "stop", "next", "wtf", "idk", "wow", ":)", ":-(", "🙂", "🎉🎉", "❤", "#", "-", "x",
    "test", "foo bar", "qwertz", "a b c d", "[]", "()", "<html>", "www.example.org", "haha",
    "lorem ipsum", "la la la", "never mind", "again", "ouch", "hmmm", "Lorem ipsum dolor sit amet.",
)  # fmt: skip

_CODE = (
    "print('hello')", "def f(x): return x", "for i in items:\n    print(i)", "x = [1, 2, 3]",
    "SELECT name FROM users;", "int main() { return 0; }", "console.log(x)", "fn main() {}",
    "let x = y;", "import os", "rm -r folder", "git push", "ls -la", "if (a > b) { a = b; }",
    "<p>text</p>", "echo $HOME", "class A: pass", "while True: pass", "x => x", "return None",
    "docker run image", "#include <stdio.h>", "const a = [];", "TypeError: x is None",
    "cd ..", "npm install", "var x;", "SELECT * FROM t WHERE id = 7;", "body { color: red; }",
    "panic!()", "IndexError: list index out of range", "a = b if c else d", "git log", "make all",
)  # fmt: skip
