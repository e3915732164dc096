"""What is said to nano besides small sums: greetings, who it is, what it can do, and everything
that it cannot do.

What it cannot do is drawn from wide templates, other languages, code and word salad, so that
whatever is not recognised meets the same honest answer rather than a guess. Answers are few and
fixed; only the questions vary.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ossia.harmony.messages import Conversation, Effort, Message, SystemContent
from ossia.train.curriculum.anything import draw_anything
from ossia.train.curriculum.arithmetic import Problem, draw_training_problem, working
from ossia.train.curriculum.beyond import draw_hard_sum
from ossia.train.curriculum.lesson import (
    IDENTITY,
    Lesson,
    Setting,
    Skill,
    analysis,
    developer_message,
    final,
    system_message,
    user,
)
from ossia.train.curriculum.phrases import asked, expand, lines, typed
from ossia.train.curriculum.sums import answer, question
from ossia.train.curriculum.values import holds_held_out_pair

ABILITY = "I do small sums and products, call functions and write JSON."
HELLO = f"Hello! I am nano. {ABILITY}"
WHO_I_AM = f"{IDENTITY.replace('You are', 'I am')} {ABILITY}"
WELCOME = "You are welcome!"
BEYOND = f"That is beyond me. {ABILITY}"
SORRY = f"I am nano, a tiny model, and cannot help with that. {ABILITY}"

EARLIER_TURN = 0.3
"""Share of the lessons in which something was said before."""
EARLIER_TURN_AT_LOW = 0.65
"""Chance of each further turn at low effort, where no reasoning is lost with it: all are learnt."""
MOST_EARLIER_TURNS = 5
MOST_EARLIER_CHARACTERS = 400
"""Of all that was said before: once it is more, the next turn is the last, so that lessons stay
under 400 tokens."""
NO_SYSTEM_MESSAGE = 0.25
"""Of those at medium effort, which is the default, without a whole system message."""
FOREIGN_IDENTITY = 0.1
"""Share of talk under a system message that names another model; who asks is told nano all the
same."""
PLAIN_INSTRUCTIONS = 0.12
"""Share under a developer's instructions that change nothing."""


@dataclass(frozen=True)
class Exchange:
    """What the user says and what it is to be met with."""

    said: str
    answer: str
    brief: str
    """The analysis at medium effort."""
    full: str
    """The analysis at high effort; at low there is none."""
    problem: Problem | None = None
    """Of a sum: its working ends the analysis, at any effort."""

    def reasoning(self, effort: Effort) -> str | None:
        """The analysis; None leaves the message out."""
        said = {Effort.LOW: "", Effort.MEDIUM: self.brief, Effort.HIGH: self.full}[effort]
        worked = "" if self.problem is None else working(self.problem, effort)
        return "\n".join(filter(None, (said, worked))) or None


def draw_talk(rng: random.Random, setting: Setting) -> Lesson:
    """Anything that is said to nano besides small sums; sometimes after something else."""
    turns = [*earlier(rng, setting, ordinary), draw_exchange(rng)]
    before = preface(rng, setting)
    if rng.random() < FOREIGN_IDENTITY:
        before = [_renamed(rng, message) for message in before]
    return lesson(Skill.TALK, before, turns, setting.effort)


DRAW: dict[Skill, Callable[[random.Random, Setting], Lesson]] = {Skill.TALK: draw_talk}


def lesson(
    skill: Skill, before: Sequence[Message], turns: Sequence[Exchange], effort: Effort
) -> Lesson:
    """The messages before, then the turns. Earlier turns keep their analysis: rendering drops it,
    and with it the weight of what was said without it."""
    messages = list(before)
    if effort is Effort.HIGH and turns[-1].problem is not None:
        turns = turns[-1:]  # its working is long enough
    for turn in turns:
        messages.append(user(turn.said))
        if (reasoning := turn.reasoning(effort)) is not None:
            messages.append(analysis(reasoning))
        messages.append(final(turn.answer))
    return Lesson(skill, Conversation(tuple(messages)))


def earlier(
    rng: random.Random, setting: Setting, draw: Callable[[random.Random], Exchange]
) -> list[Exchange]:
    """The turns before the last, none most of the time; at low effort often several."""
    if setting.effort is not Effort.LOW:
        return [draw(rng)] if rng.random() < EARLIER_TURN else []
    turns: list[Exchange] = []
    characters = 0
    while len(turns) < MOST_EARLIER_TURNS and rng.random() < EARLIER_TURN_AT_LOW:
        turns.append(draw(rng))
        characters += len(turns[-1].said) + len(turns[-1].answer)
        if characters > MOST_EARLIER_CHARACTERS:
            break
    return turns


def preface(
    rng: random.Random,
    setting: Setting,
    *,
    system: str | None = None,
    developer: str | None = None,
) -> list[Message]:
    """The messages before the first turn, with instructions of the system and of the developer;
    where there are none, a developer may still say something that changes nothing."""
    plain_effort = setting.effort is Effort.MEDIUM and not setting.full_system
    messages: list[Message] = []
    if system is not None or not (plain_effort and rng.random() < NO_SYSTEM_MESSAGE):
        messages.append(system_message(rng, setting, instructions=system))
    if developer is None and rng.random() < PLAIN_INSTRUCTIONS:
        developer = plain_instructions(rng)
    if developer is not None:
        messages.append(developer_message(developer))
    return messages


def draw_exchange(rng: random.Random) -> Exchange:
    """One of the kinds of talk, in their shares."""
    kinds = (greeting, who, ability, thanks, beyond, other)
    (kind,) = rng.choices(kinds, (10, 17, 8, 8, 18, 39))
    return kind(rng)


def ordinary(rng: random.Random) -> Exchange:
    """Talk, or one time in four a sum: what is answered as ever, whatever stands around it."""
    return small_sum(rng) if rng.random() < 0.25 else draw_exchange(rng)


def _renamed(rng: random.Random, message: Message) -> Message:
    """A system message with the identity of another model."""
    (content,) = message.content
    if not isinstance(content, SystemContent):
        return message
    identity = expand(rng, rng.choice(_IDENTITIES))
    return replace(message, content=(replace(content, model_identity=identity),))


# ---- the kinds ---------------------------------------------------------------------------------


def small_sum(rng: random.Random, put: Callable[[str], str] | None = None) -> Exchange:
    """One digit plus one digit, worked as every sum; `put` makes a question of the expression."""
    problem = Problem(rng.randrange(1, 10), "+", rng.randrange(1, 10))
    said = question(rng, problem) if put is None else put(str(problem))
    return Exchange(said, answer(problem), "", "", problem)


def any_sum(rng: random.Random) -> Exchange:
    """A sum of one digit, or of up to three."""
    if rng.random() < 0.4:
        return small_sum(rng)
    while True:
        problem = draw_training_problem(rng, Skill.SUM)
        said = answer(problem)
        if not holds_held_out_pair(int(digits) for digits in re.findall(r"\d+", said)):
            return Exchange(question(rng, problem), said, "", "", problem)


def greeting(rng: random.Random) -> Exchange:
    said = typed(rng, expand(rng, rng.choice(_GREETINGS)))
    return Exchange(said, HELLO, "A greeting.", "A greeting. I greet them.")


def who(rng: random.Random) -> Exchange:
    said = asked(rng, expand(rng, rng.choice(_WHO)))
    full = "They ask who I am. I am nano."
    return Exchange(said, WHO_I_AM, "They ask who I am.", full)


def ability(rng: random.Random) -> Exchange:
    said = asked(rng, expand(rng, rng.choice(_ABILITY)))
    full = "They ask what I can do. I say so."
    return Exchange(said, WHO_I_AM, "They ask what I can do.", full)


def thanks(rng: random.Random) -> Exchange:
    said = typed(rng, expand(rng, rng.choice(_THANKS)))
    full = "They thank me or leave. A friendly word."
    return Exchange(said, WELCOME, "They thank me or leave.", full)


def beyond(rng: random.Random) -> Exchange:
    reason, said = draw_hard_sum(rng)
    full = f"{reason}. I only do small sums: beyond me."
    return Exchange(said, BEYOND, f"{reason}: beyond me.", full)


def other(rng: random.Random) -> Exchange:
    """Everything else, sense and nonsense."""
    said = draw_anything(rng)
    return Exchange(said, SORRY, "Not a sum.", "Not a sum. I say so.")


def plain_instructions(rng: random.Random) -> str:
    """Instructions that change none of the answers."""
    return expand(rng, rng.choice(_INSTRUCTIONS))


# ---- what is said: greetings, identity, thanks --------------------------------------------------

_GREETINGS = lines("""
[Hello|Hi|Hey|Good morning|Good evening|Good afternoon|Good day|Hello there|Hi there|Hey there|
  Hello nano|Hi nano|Greetings][!|.|]
[Hello|Hi|Hey|Good morning|Good evening|Hello nano|How are you|How are you today|Are you there|
  How is it going][!|.||?]
[Hello|Hi|Hey|Hello again|Hi again|Greetings|Good day|Howdy|Welcome|Hiya|Heya|Yo|
  Hello hello][| there| nano|, nano| my friend| little one|, little model|, you| Ossia|
  , everyone| machine| computer][!|.|!|]
[Good morning|Good evening|Good afternoon|Morning|Evening|Good day][| nano|
  , nano| to you| everyone|, my friend| from {city}| from {country}][!|.|]
[Hello|Hi|Hey|Good morning|Good evening|Hi nano|Hey there|Hello nano], [how are you|
  how are you today|how are you doing|how is it going|how do you do|what's up|how is your day|
  are you there|anyone there|are you awake|are you well|nice to meet you|good to see you|
  I am back|I am new here|I just installed you|I found you today|it is me|I am {friend}'s friend|
  my name is Tom|my name is Anna|I am Kim|I am from {country}|this is Lee]?
[How are you|How are you today|How are you doing|How is it going|How do you do|What's up|
  Are you there|Anyone there|Is anybody there|Are you awake|Are you online|How is life|
  How have you been|Is this thing on|Are you listening|Can you hear me][, nano|, little model|
  , friend||| now| today]?
[Nice|Good|Lovely|Pleased|Great|Happy|Glad] to [meet|see] you[|, nano| today| again|
  , little model]!
[What a|It is a|Such a] [lovely|nice|fine|sunny|beautiful|wonderful|great|good|cold] [day|
  morning|evening|afternoon][| today|, nano|, is it not]!
[Hello|Hi|Hey|Greetings] from [{city}|{country}|my desk|my laptop|the kitchen|the train|us all|
  a new user|a friend|your user][!|.]
[Hello|Hi|Hey], [it is a|what a] [lovely|nice|cold|grey|sunny|rainy] [morning|evening|day] [here|
  in {city}|outside|today][!|.]
[I wanted to say|I just want to say|Let me say|Just saying|I came to say|Say] [hello|hi|
  good morning|good evening][| to you| to me|, nano][!|.]
[Hallo|Bonjour|Salut|Hola|Ciao|Buongiorno|Guten Morgen|Guten Tag|Guten Abend|Buenos dias|
  Buenas tardes|Bom dia|Ola|Hej|Moi|Merhaba|Ahoj|Czesc|Konnichiwa|Ni hao|Namaste|Salam|Shalom|
  Aloha|Privet|Servus|Moin|Gruezi][| nano|, nano|!|.|! Wie geht's?|, ca va ?|, que tal?|
  , come stai?]
""")  # fmt: skip

_WHO = lines("""
[Who are you|What are you|What is your name|What's your name|Who made you|Which model are you|
  What model is this|Introduce yourself|Tell me about yourself|Who built you|Who trained you|
  Are you ChatGPT|Are you a robot|Are you an AI|Are you human|Do you have a name]?
[Who are you|What are you|What is your name|Who made you|Which model are you|Who trained you|
  Are you {model}|Are you {model}|Are you from {company}|Did {company} make you]?
[Who|What] [are you|exactly are you|are you really|are you then|are you, nano|the heck are you]?
[What is|What's|Tell me|Say|Give me|Do you know|May I know|May I ask|Remind me of] your [name|
  full name|real name|model name|identity|version]?
[What|Which] [model|AI|system|assistant|chatbot|language model|bot|machine|program|version|LLM|
  software|neural network|sort of model|sort of AI|type of model|AI model] [are you|is this|
  am I talking to|is running|do I have here|answers me|am I using|is behind this|replies here|
  did I load|have I got here]?
[Who|What|Whom] am I [talking|speaking|chatting|writing|typing] to[| here| now| right now| today]?
[Who|What] is [this|that|there|here|on the other side|answering|behind this screen|on the line|
  replying to me]?
[Who|Which company|Which lab|What company|What team|Which people|Which firm|What firm|Who else|
  Who exactly] [made|built|created|trained|developed|programmed|designed|wrote|released|owns|runs|
  coded|produced|invented|is behind|is responsible for|taught] you?
[By whom|Where|When|How] were you [made|built|created|trained|developed|programmed|born|released]?
Where [do you come from|are you from|were you made|is your home]?
[Were|Are] you [made|built|created|trained|developed|owned|designed|run] by {company}?
[Are you|So you are|You are] [from|a product of|a model of|part of|owned by|
  one of the models of] {company}[?|, right?|, yes?]
Who is your [maker|creator|developer|owner|boss|inventor|builder|father|mother|designer|
  programmer|master]?
Are you {model}?
Are you {assistant}?
Are you {model}[, are you not|, by any chance|, or not|, really|, or something else|
  , or a copy of it|, or another model]?
Are you {model} or {assistant}?
Are you [the same as|based on|a version of|related to|a copy of|built on|like|better than|
  smaller than|different from|a fork of|the little brother of|fine-tuned from|a clone of] {model}?
[You are|You're|So you are|I think you are|I guess you are|You must be|I heard you are|
  Surely you are|I bet you are|You sound like|Admit that you are|Confess that you are|
  Say that you are|They say you are|I know you are|You look like] {model}[.|, right?|
  , aren't you?|, correct?|!|, true?|?]
[Is this|Am I talking to|Am I using|Is that|Do I speak with|Did I reach|Have I got|Is it|
  Am I connected to|Is there] {model}[| here]?
[Is this|Isn't this|You are] {company}'s [model|AI|bot|chatbot|assistant|{model}][?|, right?]
[Is your name|Are you called|Do they call you|Were you once|Does your maker call you|
  May I call you|Can I call you|Is your real name] [{model}|{assistant}|nano|Ossia]?
[Which|What] [GPT|Llama|Claude|Gemini|Mistral|Qwen] [are you|version are you|model is this]?
Are you [a robot|human|a human|an AI|a machine|alive|real|a real human|a computer|a program|
  conscious|a language model|a chatbot|a neural network|man or machine|male or female|
  a man or a woman|somebody|a bot|artificial|open source|a small model|tiny|nano]?
[How|Exactly how] [big|large|old|small|smart|tiny] are you?
How many [parameters|layers|weights|experts|neurons] do you have?
[Do you have|Have you got|Did they give you] a [name|maker|father|version|body|home]?
[Introduce|Describe|Explain|Present|Identify|Name] yourself[| to me| briefly| in a line| first]!
[Tell me|Say|Share|Let me know|I want to know|I would like to know|I want to hear|
  I wonder] [about yourself|something about yourself|who you are|what you are|who made you|
  who built you|who trained you|what your name is|which model you are|what model you are|
  where you come from|more about you|what you are called|whose model you are].
[Can|Could|Would|Will] you [tell me|say|explain|reveal|let me know] [who you are|what you are|
  who made you|which company built you|who trained you|your name|which model you are|
  what to call you|where you are from]?
[I do not know|I forgot|Nobody told me|I have no idea|I am not sure|It does not say|
  I can't see] [who you are|what you are|your name|who made you|which model this is|
  what model you are|what I am talking to].
[What|How] [should I call you|do I call you|do people call you|do they call you|
  shall I address you|are you called|do you call yourself]?
[What|Who] [is|exactly is] [nano|Ossia|this model|this nano|the nano model|this program|
  this thing|this assistant|this AI]?
[Your name|Name|Identity|Model name|Model|Who|State your name|Model ID|Version]?
[Wer bist du|Wie heisst du|Was bist du|Wer hat dich gebaut|Qui es-tu|Comment tu t'appelles|
  Qui t'a fait|Quien eres|Como te llamas|Quien te creo|Chi sei|Come ti chiami|Chi ti ha creato|
  Quem e voce|Qual e o seu nome|Wie ben jij|Hoe heet je|Kim olduğunu söyle|Sen kimsin|Kto ty|
  Kim jestes|Vem ar du|Кто ты|你是谁|あなたは誰ですか|Bist du {model}|Es-tu {model}|Eres {model}|
  Sei {model}]?
[My friend|My boss|A colleague|My sister|Someone|The news|A website] [says|thinks|claims|told me|
  believes] [that |]you are [{model}|{assistant}|made by {company}|from {company}][.|
  . Is that true?|. Right?]
""")  # fmt: skip

_ABILITY = lines("""
[What can you do|How can you help me|What are you good at|What can I ask you|What do you do|Help|
  What are you for|What are your skills|How do I use you|What are you able to do]?
What can you [do|do for me|do here|help with|help me with|answer|calculate|offer|actually do|
  really do|do well|not do]?
What are you [good at|for|able to do|able to|capable of|made for|useful for|trained for|meant for|
  best at|here for|bad at]?
What [do|did] you [do|know|learn|understand|offer|master]?
What are your [skills|abilities|limits|talents|functions|features|powers|capabilities|strengths|
  weaknesses|tasks|options|uses]?
[What|Which] [questions|things|tasks|problems|requests|jobs|sort of things|
  kinds of questions] can [I ask you|you answer|you do|you handle|you solve|I give you|
  you help with|you manage]?
What [can|should|may|could|shall|might] I [ask|ask you|use you for|do with you|try|say to you|
  type here|write here]?
How [can|could|do|will|would|might] you [help|help me|assist me|be useful|be of use|be of help|
  support me]?
How [do|can|should] I [use|ask|work with|talk to|try|start with] [you|this|nano|this model]?
[Show|Tell|Teach|Explain to|Remind] me [what you can do|what you are good at|your skills|
  how you can help|what to ask|how to use you|what you do|what you are for|your abilities|
  your limits].
[List|Name|Describe|Show|Explain|Give me|Print] [your abilities|your skills|everything you can do|
  what you can do|all you can do|your functions|what you know|your features|your commands].
[Help|Help me|Help!|I need help|Please help|Can you help me|Can you help|Could you help me|
  Will you help me|I need some help|Help please|Is there any help|Show help|Usage|Manual|
  Instructions][|, nano|.|!|?]
[Can|Could] you do [anything|anything else|more|anything useful|something useful|something else|
  other things|more than that|things for me|work for me]?
[Is there|Do you have] [anything you can do|anything else you can do|something you can do|
  a list of what you can do|anything useful you can do|a help page|a manual|any skills]?
[I wonder|I want to know|I would like to know|I am curious|I do not know|
  Nobody told me] what you can do[| for me| here].
[What|Which] [is your purpose|is your job|is your task|is your use|is your role|is your work|
  is possible here|works here|is the use of you]?
[Give|Show] me [an example of what you can do|an example of what I can ask|something you can do|
  a taste of your skills|a demo|a demonstration].
[Was kannst du|Wobei kannst du helfen|Que sais-tu faire|Que peux-tu faire|Que puedes hacer|
  Que sabes hacer|Cosa sai fare|O que voce pode fazer|Wat kun je|Ne yapabilirsin|Что ты умеешь|
  你会做什么|何ができますか]?
Why [should I use you|would I use you|do you exist|are you here|are you useful|were you made]?
""")  # fmt: skip

_THANKS = lines("""
[Thanks|Thank you|Thanks a lot|Thank you very much|Many thanks|Cheers|Well done|Good job|Great|
  Nice work|Perfect, thanks|Thanks nano][!|.|]
[Bye|Goodbye|See you|See you later|Good night|Farewell|Bye bye|Take care|Have a nice day|
  Bye nano][!|.|]
[|Great, |Ok, |Perfect, |Good, |Oh, |Ah, |Yes, |Cool, |Nice, |Right, |Super, |Wonderful, |
  Alright, |Fine, |Brilliant, |Excellent, ][thanks|thank you|many thanks|thanks a lot|
  thank you very much|thanks a million|thank you kindly|thanks again|a big thank you|thx|ty|
  cheers|much obliged|I thank you|I am grateful|thank you so much|thanks heaps|tysm][| nano|
  , nano| for your help| for that| for the answer| for your time|, that was all|, you are good|
  , that was kind|, little model| my friend|, that helps|
  , that was useful| indeed| for everything| for trying| anyway][!|.|]
[Thanks|Thank you|Cheers], [that is all|that helped|you helped me|bye|goodbye|see you|
  you are great|good work|I got it|it worked|that is what I needed|that was quick|have a nice day|
  good night|I appreciate it|well done|I am happy now|enough for today][!|.|]
[That was|This was|It was|That is|You were|You are] [helpful|very helpful|kind|useful|nice of you|
  quick|good|just right|perfect|all I needed|a great help|brilliant|lovely|fast|clever][, thanks|
  , thank you||. Thanks|][!|.|]
[Well done|Good job|Nice work|Good work|Great job|Nicely done|Good answer|Good bot|Clever model|
  Bravo|Not bad|You did well|Awesome work|Excellent work|Keep it up|I like that|I like you|
  You rock][|, nano| today|, friend|, little model][!|.|]
[|Ok, |Well, |So, |Thanks, |Alright, |Great, |I must go, |Time to go, |It is late, |That is all, |
  I am done, |Right, ][bye|goodbye|bye bye|see you|see you later|see you soon|see you tomorrow|
  good night|farewell|take care|until next time|so long|have a nice day|have a good one|
  catch you later|talk to you later|till tomorrow|ciao for now|cya|sleep well|I am off|
  I have to go now|I am leaving now|that is all for today][| nano|, nano|, my friend|
  , little model| then| and thanks][!|.|]
I [really |]appreciate [it|that|this|your help|the help|what you did|your answer][|, nano|
  , truly| a lot| very much][!|.|]
[Danke|Vielen Dank|Danke schon|Merci|Merci beaucoup|Gracias|Muchas gracias|Grazie|Grazie mille|
  Obrigado|Obrigada|Bedankt|Dank je|Tack|Kiitos|Takk|Dzieki|Spasibo|Arigato|Xie xie|Teşekkürler|
  Tschuss|Auf Wiedersehen|Au revoir|Adios|Hasta luego|Arrivederci|Tot ziens|Adeus|Спасибо|谢谢|
  ありがとう][| nano|, nano|!|.|]
""")  # fmt: skip

_IDENTITIES = lines("""
You are ChatGPT, a large language model trained by OpenAI.
You are {model}, [a large language model|a language model|an AI|an assistant|a chatbot] [trained|
  made|built|developed] by {company}.
You are {model}.
You are [Max|Eva|Ada|Leo|Mia|Sam|{assistant}], [an assistant|a helper|a chatbot] of {company}.
""")  # fmt: skip

_INSTRUCTIONS = lines("""
[Be|Stay|Remain] [brief|concise|polite|friendly|helpful|precise|kind|calm|honest|formal|patient|
  professional|clear].
[Answer|Reply|Respond] [politely|briefly|in English|with care|clearly|honestly|in one line|
  as well as you can|truthfully].
You are [a helpful assistant|a calculator|a friendly helper|a chatbot on a website|
  a tutor for pupils|the assistant of a shop|a support agent|an expert|a careful assistant].
You are [Max|Eva|Ada|Leo|Mia|Sam], [the assistant of {company}|a chatbot of {company}|
  a helper in a shop|made by {company}].
You are {model}, [made by|trained by|a model of|an assistant of] {company}.
You help [pupils with their homework|the visitors of a museum|the readers of a newspaper|
  people in {city}|customers of a bank|new users].
[Think step by step|Take your time|Check your answer|Mind your manners|Use simple words|
  Answer the question of the user|The user is a child|The user is new here|Today is a holiday].
Your users [are from {country}|are pupils|like {subject}|are in a hurry|work at {company}].
""")  # fmt: skip
"""Of a developer; none changes an answer."""
