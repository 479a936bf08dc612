"""Samples of each of the 25 languages: sentences, and utterances of one to three words."""
# ruff: noqa: RUF001 - Cyrillic and Greek letters look like Latin ones

from __future__ import annotations

SENTENCES: dict[str, tuple[str, ...]] = {
    "bg": (
        "Утре сутринта ще пътуваме с влак до морето.",
        "Мисля, че трябва да поговорим за това по-късно.",
        "Колко струва един килограм домати?",
        "Дъщеря ми започна училище през септември и много ѝ харесва.",
    ),
    "cs": (
        "Zítra ráno pojedeme vlakem k babičce na venkov.",
        "Myslím, že bychom si o tom měli promluvit později.",
        "Kolik stojí kilo rajčat?",
        "Moje dcera začala v září chodit do školy a moc se jí tam líbí.",
    ),
    "da": (
        "I morgen tidlig tager vi toget ud til havet.",
        "Jeg synes, vi skal snakke om det lidt senere.",
        "Hvad koster et kilo tomater?",
        "Min datter begyndte i skole i september, og hun er rigtig glad for det.",
    ),
    "de": (
        "Morgen früh fahren wir mit dem Zug ans Meer.",
        "Ich glaube, wir sollten später noch einmal darüber reden.",
        "Was kostet ein Kilo Tomaten?",
        "Meine Tochter ist im September in die Schule gekommen und geht sehr gerne hin.",
    ),
    "el": (
        "Αύριο το πρωί θα πάμε με το τρένο στη θάλασσα.",
        "Νομίζω ότι πρέπει να το συζητήσουμε αργότερα.",
        "Πόσο κάνει ένα κιλό ντομάτες;",
        "Η κόρη μου άρχισε το σχολείο τον Σεπτέμβριο και της αρέσει πολύ.",
    ),
    "en": (
        "Set a timer for ten minutes.",
        "Tomorrow morning we are taking the train to the seaside.",
        "I think we should talk about this again later on.",
        "My daughter started school in September and she really likes it.",
    ),
    "es": (
        "Mañana por la mañana vamos en tren a la playa.",
        "Creo que deberíamos hablar de esto más tarde.",
        "¿Cuánto cuesta un kilo de tomates?",
        "Mi hija empezó el colegio en septiembre y le gusta mucho.",
    ),
    "et": (
        "Homme hommikul sõidame rongiga mere äärde.",
        "Ma arvan, et me peaksime sellest hiljem rääkima.",
        "Kui palju maksab kilo tomateid?",
        "Mu tütar läks septembris kooli ja talle meeldib seal väga.",
    ),
    "fi": (
        "Huomenna aamulla menemme junalla meren rannalle.",
        "Minusta meidän pitäisi puhua tästä myöhemmin.",
        "Paljonko kilo tomaatteja maksaa?",
        "Tyttäreni aloitti koulun syyskuussa ja viihtyy siellä hyvin.",
    ),
    "fr": (
        "Demain matin, nous prenons le train pour aller à la mer.",
        "Je pense qu'on devrait en reparler plus tard.",
        "Combien coûte un kilo de tomates ?",
        "Ma fille est entrée à l'école en septembre et ça lui plaît beaucoup.",
    ),
    "hr": (
        "Sutra ujutro idemo vlakom na more.",
        "Mislim da bismo o tome trebali razgovarati kasnije.",
        "Koliko košta kilogram rajčica?",
        "Moja kći je u rujnu krenula u školu i jako joj se sviđa.",
    ),
    "hu": (
        "Holnap reggel vonattal megyünk a tengerhez.",
        "Azt hiszem, erről később kellene beszélnünk.",
        "Mennyibe kerül egy kiló paradicsom?",
        "A lányom szeptemberben kezdte az iskolát, és nagyon szereti.",
    ),
    "it": (
        "Domani mattina andiamo al mare in treno.",
        "Penso che dovremmo parlarne più tardi.",
        "Quanto costa un chilo di pomodori?",
        "Mia figlia ha cominciato la scuola a settembre e le piace molto.",
    ),
    "lt": (
        "Rytoj ryte važiuosime traukiniu prie jūros.",
        "Manau, kad turėtume apie tai pasikalbėti vėliau.",
        "Kiek kainuoja kilogramas pomidorų?",
        "Mano dukra rugsėjį pradėjo lankyti mokyklą ir jai labai patinka.",
    ),
    "lv": (
        "Rīt no rīta mēs ar vilcienu brauksim uz jūru.",
        "Es domāju, ka mums par to vajadzētu parunāt vēlāk.",
        "Cik maksā kilograms tomātu?",
        "Mana meita septembrī sāka iet skolā, un viņai ļoti patīk.",
    ),
    "mt": (
        "Għada filgħodu se mmorru l-baħar bil-karozza tal-linja.",
        "Naħseb li għandna nitkellmu dwar dan aktar tard.",
        "Kemm jiswa kilo tadam?",
        "It-tifla tiegħi bdiet l-iskola f'Settembru u tħobbha ħafna.",
    ),
    "nl": (
        "Morgenochtend gaan we met de trein naar zee.",
        "Ik denk dat we hier later nog eens over moeten praten.",
        "Wat kost een kilo tomaten?",
        "Mijn dochter is in september naar school gegaan en ze vindt het erg leuk.",
    ),
    "pl": (
        "Jutro rano jedziemy pociągiem nad morze.",
        "Myślę, że powinniśmy porozmawiać o tym później.",
        "Ile kosztuje kilogram pomidorów?",
        "Moja córka we wrześniu poszła do szkoły i bardzo jej się tam podoba.",
    ),
    "pt": (
        "Amanhã de manhã vamos de comboio para a praia.",
        "Acho que devíamos falar sobre isso mais tarde.",
        "Quanto custa um quilo de tomates?",
        "A minha filha começou a escola em setembro e gosta muito.",
    ),
    "ro": (
        "Mâine dimineață mergem cu trenul la mare.",
        "Cred că ar trebui să vorbim despre asta mai târziu.",
        "Cât costă un kilogram de roșii?",
        "Fiica mea a început școala în septembrie și îi place foarte mult.",
    ),
    "ru": (
        "Завтра утром мы поедем на поезде к морю.",
        "Я думаю, нам надо поговорить об этом позже.",
        "Сколько стоит килограмм помидоров?",
        "Моя дочь в сентябре пошла в школу, и ей там очень нравится.",
    ),
    "sk": (
        "Zajtra ráno pôjdeme vlakom k starej mame na dedinu.",
        "Myslím si, že by sme sa o tom mali porozprávať neskôr.",
        "Koľko stojí kilo paradajok?",
        "Moja dcéra začala v septembri chodiť do školy a veľmi sa jej tam páči.",
    ),
    "sl": (
        "Jutri zjutraj gremo z vlakom na morje.",
        "Mislim, da bi se morali o tem pogovoriti pozneje.",
        "Koliko stane kilogram paradižnika?",
        "Moja hči je septembra začela hoditi v šolo in ji je zelo všeč.",
    ),
    "sv": (
        "I morgon bitti tar vi tåget till havet.",
        "Jag tycker att vi borde prata om det här senare.",
        "Vad kostar ett kilo tomater?",
        "Min dotter började skolan i september och hon trivs jättebra.",
    ),
    "uk": (
        "Завтра вранці ми поїдемо потягом до моря.",
        "Я думаю, нам варто поговорити про це пізніше.",
        "Скільки коштує кілограм помідорів?",
        "Моя донька у вересні пішла до школи, і їй там дуже подобається.",
    ),
}
"""Four of each language, as a transcript would have them."""

UTTERANCES: dict[str, tuple[str, ...]] = {
    "bg": ("Добре.", "Благодаря много.", "Не знам.", "Да, разбира се.", "Добро утро!"),
    "cs": ("Dobře.", "Děkuji mockrát.", "Já nevím.", "Ano, samozřejmě.", "Dobré ráno!"),
    "da": ("Okay.", "Mange tak.", "Det ved jeg ikke.", "Ja, selvfølgelig.", "Godmorgen!"),
    "de": ("Okay.", "Vielen Dank.", "Weiß ich nicht.", "Ja, natürlich.", "Guten Morgen!"),
    "el": ("Εντάξει.", "Ευχαριστώ πολύ.", "Δεν ξέρω.", "Ναι, φυσικά.", "Καλημέρα!"),
    "en": ("Okay.", "Thank you.", "I don't know.", "Yes, of course.", "Good morning!"),
    "es": ("Vale.", "Muchas gracias.", "No lo sé.", "Sí, claro.", "¡Buenos días!"),
    "et": ("Hästi.", "Suur tänu.", "Ma ei tea.", "Jah, muidugi.", "Tere hommikust!"),
    "fi": ("Selvä.", "Kiitos paljon.", "En tiedä.", "Joo, tietysti.", "Hyvää huomenta!"),
    "fr": ("D'accord.", "Merci beaucoup.", "Je ne sais pas.", "Oui, bien sûr.", "Bonjour !"),
    "hr": ("Dobro.", "Hvala lijepa.", "Ne znam.", "Da, naravno.", "Dobro jutro!"),
    "hu": ("Rendben.", "Köszönöm szépen.", "Nem tudom.", "Igen, persze.", "Jó reggelt!"),
    "it": ("Va bene.", "Grazie mille.", "Non lo so.", "Sì, certo.", "Buongiorno!"),
    "lt": ("Gerai.", "Labai ačiū.", "Aš nežinau.", "Taip, žinoma.", "Labas rytas!"),
    "lv": ("Labi.", "Liels paldies.", "Es nezinu.", "Jā, protams.", "Labrīt!"),
    "mt": ("Tajjeb.", "Grazzi ħafna.", "Ma nafx.", "Iva, mela.", "Bonġu!"),
    "nl": ("Oké.", "Dank je wel.", "Weet ik niet.", "Ja, natuurlijk.", "Goedemorgen!"),
    "pl": ("Dobrze.", "Dziękuję bardzo.", "Nie wiem.", "Tak, oczywiście.", "Dzień dobry!"),
    "pt": ("Está bem.", "Muito obrigado.", "Não sei.", "Sim, claro.", "Bom dia!"),
    "ro": ("Bine.", "Mulțumesc mult.", "Nu știu.", "Da, desigur.", "Bună dimineața!"),
    "ru": ("Хорошо.", "Спасибо большое.", "Я не знаю.", "Да, конечно.", "Доброе утро!"),
    "sk": ("Dobre.", "Ďakujem pekne.", "Ja neviem.", "Áno, samozrejme.", "Dobré ráno!"),
    "sl": ("V redu.", "Najlepša hvala.", "Ne vem.", "Ja, seveda.", "Dobro jutro!"),
    "sv": ("Okej.", "Tack så mycket.", "Jag vet inte.", "Ja, självklart.", "God morgon!"),
    "uk": ("Добре.", "Дуже дякую.", "Я не знаю.", "Так, звичайно.", "Доброго ранку!"),
}
"""Some are the same words in two languages ("Добре.", "Okay.", "Dobro jutro!")."""
